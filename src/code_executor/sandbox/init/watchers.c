#include "watchers.h"

#include "quiet.h"

/* The functions of sys, and atexit._run_exitfuncs. References held for ever. */
static struct {
    PyObject *gettrace, *settrace, *getprofile, *setprofile, *exits;
} python;
static PyObject *trace, *profile; /* the program's, while they are taken from it */

void watchers_setup(void)
{
    PyObject *atexit = PyDict_GetItemString(PyImport_GetModuleDict(), "atexit");
    Py_IncRef(python.gettrace = PySys_GetObject("gettrace"));
    Py_IncRef(python.settrace = PySys_GetObject("settrace"));
    Py_IncRef(python.getprofile = PySys_GetObject("getprofile"));
    Py_IncRef(python.setprofile = PySys_GetObject("setprofile"));
    python.exits = PyObject_GetAttrString(atexit, "_run_exitfuncs");
}

static PyObject *take(PyObject *get, PyObject *set)
{
    PyObject *watcher = PyObject_CallFunctionObjArgs(get, NULL);
    PyObject *done = watcher ? PyObject_CallFunctionObjArgs(set, &_Py_NoneStruct, NULL) : NULL;
    if (done)
        Py_DecRef(done);
    return watcher;
}

static void give(PyObject *set, PyObject *watcher)
{
    PyObject *done = watcher ? PyObject_CallFunctionObjArgs(set, watcher, NULL) : NULL;
    if (done)
        Py_DecRef(done);
    if (watcher)
        Py_DecRef(watcher);
}

static int take_both(void)
{
    trace = take(python.gettrace, python.settrace);
    profile = take(python.getprofile, python.setprofile);
    return trace != &_Py_NoneStruct || profile != &_Py_NoneStruct;
}

static void give_both(void)
{
    give(python.settrace, trace);
    give(python.setprofile, profile);
}

PyObject *call_unwatched(PyObject *end)
{
    int watched = take_both();
    PyObject *result = NULL, *done = NULL;
    if (watched && quiet_threads()) {
        give_both();
        done = PyObject_CallFunctionObjArgs(python.exits, NULL);
        take_both();
    }
    if (!watched || done)
        result = PyObject_CallFunctionObjArgs(end, NULL);
    give_both();
    if (done)
        Py_DecRef(done);
    return result;
}
