/* Whether a program has left anything that could notice the end of its interpreter. */
#ifndef CE_QUIET_H
#define CE_QUIET_H

#include "capi.h"

/* gc.get_objects, atexit._ncallbacks, a tuple of types whose end cannot be noticed, weakref.ref. */
void quiet_setup(PyObject *objects, PyObject *callbacks, PyObject *plain, PyObject *reference);
/* Whether sys.modules holds what it held when it was remembered, but for another __main__, and the
 * program has frozen nothing, seen from the list of what the collector knows. */
int quiet_untouched(PyObject *objects);
/* Whether nobody is told what the collector does: with the interpreter's end it works once more. */
int quiet_collections(void);
/* One thread, none that ended unjoined, and nothing put where threads are waited for. */
int quiet_threads(void);
/* Remember what is there before the program; call once all that is to be warm is loaded. */
void quiet_remember(void);
/* Whether nothing of a program's could notice that the interpreter's end is left out, as far as that
 * is seen at a glance; 0 means: look closer. Calls nothing of the program's. */
int quiet_end(void);

#endif
