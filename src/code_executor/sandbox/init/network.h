/* Network namespaces of sandboxes: each has one loopback interface, and they are used in turn. */
#ifndef CE_NETWORK_H
#define CE_NETWORK_H

/* Enter a network namespace for the next sandbox: 0, or -1 with errno. `*taken` becomes its number,
 * or -1 if it cannot be used again.
 *
 * `used` is the number of one that an earlier sandbox is done with, or -1. It is entered again only
 * if it is as it was when new, told from the kernel's own counters: no packet was ever sent or
 * refused in it, and no socket is left. Then nothing of that run can be: a program has no right to
 * configure it, and what lives on after a socket (a port in TIME_WAIT, a cached route or metric)
 * takes a packet to come into being, or is a route of IPv6, which are counted. Otherwise a new one
 * takes its place and its number. */
int network_enter(int used, int *taken);
/* Let go of the newest one, of whose number nobody else knows; nothing if that is -1. */
void network_forget(int taken);

#endif
