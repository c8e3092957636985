/* A small root of its own for code that is normally PID 1 of a sandbox. */
#ifndef CE_TEST_PLACE_H
#define CE_TEST_PLACE_H

/* Go on as PID 1 of a new pid namespace, in a root on a tmpfs mounted at `directory`, with /work
 * and /work/outputs in it and the host's /usr; anybody may write anywhere in it, so that a wrong
 * path does harm that can be seen. The caller's process waits and ends as that one
 * does. As an ordinary user this takes a user namespace; on failure the process ends with 70. */
void enter_place(const char *directory);

#endif
