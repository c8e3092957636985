/* The filter installed once in a zygote, and inherited by every program that it forks. */
#ifndef CE_AHEAD_H
#define CE_AHEAD_H

#include "become.h"

/* Install `filter` in this process, with a new key, and forget the rules; -1 with errno. */
int filter_ahead(struct filter *filter);
/* A system call with two arguments; and with the key, where this process has one. */
long with_key(long number, long first, long second);
/* In a child, when it has become the program: nothing in its memory opens the filter any more. */
void forget_key(void);

#endif
