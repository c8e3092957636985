/* PID 1 of a sandbox. */
#ifndef CE_INIT_H
#define CE_INIT_H

#include "become.h"
#include "setup.h"

/* Serve one job: frames of the host come on `in`, init's go out on `out`, which may be the same;
 * never returns. */
_Noreturn void init_serve(int in, int out, const struct sandbox *sandbox,
                          const struct filter *filter);

#endif
