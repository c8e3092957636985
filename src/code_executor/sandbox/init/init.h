/* PID 1 of a sandbox. */
#ifndef CE_INIT_H
#define CE_INIT_H

#include "become.h"
#include "setup.h"

/* Serve one job over `control`; never returns. */
_Noreturn void init_serve(int control, const struct sandbox *sandbox, const struct filter *filter);

#endif
