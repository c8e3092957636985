/* A program's tracer or profiler. */
#ifndef CE_WATCHERS_H
#define CE_WATCHERS_H

#include "capi.h"

/* Once, before any program. */
void watchers_setup(void);
/* What `end` returns, which is ours and called so that the program's tracer or profiler does not see
 * it, only the exit functions. NULL, and not called, where it would see threads joined as well. */
PyObject *call_unwatched(PyObject *end);

#endif
