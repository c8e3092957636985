/* Init as PID 1 of a container that somebody else has isolated. */
#ifndef CE_CONTAINED_H
#define CE_CONTAINED_H

/* `init --contained …`: see contained.c. Never returns. */
_Noreturn void contained_main(int argc, char **argv);

#endif
