/* Theory of operation. Most programs leave nothing behind that a finalizing interpreter would call:
 * no thread, no atexit function, no module, no object with a finalizer. To find that out in Python
 * costs more pages copied than the program itself, so it is found out here, by reading. What is
 * compared was remembered in the zygote; objects that were there then are frozen, and what the
 * collector lists besides is the program's.
 *
 * Whatever is not plain is left to end() of bootstrap/zygote.py, which judges it closely.
 */
#include "quiet.h"

enum { MODULES_MAX = 4096, PLAIN_MAX = 256, OBJECTS_MAX = 5000 };
static const unsigned long HEAP_TYPE = 1UL << 9; /* Py_TPFLAGS_HEAPTYPE: made at run time */

/* References held for ever. */
static struct {
    PyObject *objects;   /* gc.get_objects */
    PyObject *callbacks; /* atexit._ncallbacks */
    PyObject *plain[PLAIN_MAX]; /* types whose end cannot be noticed */
    size_t plain_count;
    PyObject *reference; /* weakref.ref: not to be noticed when it has no callback */
    PyObject *finalizer; /* "__del__" */
    PyObject *debug;     /* gc.get_debug */
    PyObject *collected; /* gc.callbacks */
    int usable;
} python;
/* sys.modules when the zygote was warm, in its order: compared by address, since to count a
 * reference in each key would copy half of the pages that are shared with the zygote. */
static struct {
    PyObject *name, *module;
} warm[MODULES_MAX];
static size_t warm_count;
static PyObject *canary; /* listed by the collector unless the program froze what it made */
static PyObject *out, *err; /* sys.stdout and sys.stderr, not kept from their end */
static struct {
    PyObject *variables, *shutdown, *atexits;
} threading;

void quiet_setup(PyObject *objects, PyObject *callbacks, PyObject *plain, PyObject *reference)
{
    ssize_t count = PyTuple_Size(plain);
    python.objects = objects;
    python.callbacks = callbacks;
    python.reference = reference;
    Py_IncRef(objects);
    Py_IncRef(callbacks);
    Py_IncRef(reference);
    Py_IncRef(plain);
    for (ssize_t i = 0; i < count && i < PLAIN_MAX; i++)
        if ((python.plain[python.plain_count] = PyTuple_GetItem(plain, i)) != reference)
            python.plain_count++;
    PyObject *gc = PyDict_GetItemString(PyImport_GetModuleDict(), "gc");
    python.debug = gc ? PyObject_GetAttrString(gc, "get_debug") : NULL;
    python.collected = gc ? PyObject_GetAttrString(gc, "callbacks") : NULL;
    python.finalizer = PyUnicode_InternFromString("__del__");
    /* A build whose objects begin otherwise (free threading, debugging) fails this. */
    python.usable = python.debug && python.collected && python.finalizer &&
                    reference->type == &PyType_Type &&
                    PyType_Type.type == &PyType_Type;
}

static void remember_threading(void)
{
    PyObject *module = PyDict_GetItemString(PyImport_GetModuleDict(), "threading");
    threading.variables = module ? PyModule_GetDict(module) : NULL;
    if (!threading.variables)
        return;
    threading.shutdown = PyDict_GetItemString(threading.variables, "_shutdown");
    threading.atexits = PyDict_GetItemString(threading.variables, "_threading_atexits");
}

void quiet_remember(void)
{
    ssize_t at = 0;
    warm_count = 0;
    while (warm_count < MODULES_MAX && PyDict_Next(PyImport_GetModuleDict(), &at,
                                                   &warm[warm_count].name, &warm[warm_count].module))
        warm_count++;
    out = PySys_GetObject("stdout");
    err = PySys_GetObject("stderr");
    canary = Py_BuildValue("[]");
    remember_threading();
}

static int same_modules(void)
{
    ssize_t at = 0;
    size_t i = 0;
    PyObject *name, *module, *main = PyImport_AddModule("__main__");
    while (PyDict_Next(PyImport_GetModuleDict(), &at, &name, &module)) {
        if (i == warm_count || name != warm[i].name || (module != warm[i].module && module != main))
            return 0;
        i++;
    }
    return i == warm_count;
}

int quiet_untouched(PyObject *objects)
{
    for (ssize_t i = PyList_Size(objects) - 1; i >= 0; i--)
        if (PyList_GetItem(objects, i) == canary)
            return same_modules();
    PyErr_Clear();
    return 0;
}

/* One thread, none that ended unjoined, and nothing put where threads are waited for. */
int quiet_threads(void)
{
    void *first = PyInterpreterState_ThreadHead(PyInterpreterState_Get());
    if (PyThreadState_Next(first))
        return 0;
    if (!threading.variables)
        return 1;
    return threading.shutdown && threading.atexits && PyList_Size(threading.atexits) == 0 &&
           PyDict_GetItemString(threading.variables, "_shutdown") == threading.shutdown &&
           PyDict_GetItemString(threading.variables, "_threading_atexits") == threading.atexits;
}

static int no_callbacks(void)
{
    PyObject *count = PyObject_CallFunctionObjArgs(python.callbacks, NULL);
    long number = count ? PyLong_AsLong(count) : -1;
    if (count)
        Py_DecRef(count);
    return number == 0;
}

int quiet_collections(void)
{
    PyObject *flags = PyObject_CallFunctionObjArgs(python.debug, NULL);
    int quiet = flags && PyLong_AsLong(flags) == 0 && PyList_Size(python.collected) == 0;
    if (flags)
        Py_DecRef(flags);
    return quiet;
}

static int is_plain_type(const PyObject *type)
{
    for (size_t i = 0; i < python.plain_count; i++)
        if (type == python.plain[i])
            return 1;
    return 0;
}

/* A class that a program has made of plain ones, without a finalizer. One with a metaclass is not
 * asked: that could be the program's. */
static int is_plain_class(PyObject *type)
{
    if (type->type != &PyType_Type || _PyType_Lookup(type, python.finalizer))
        return 0;
    PyObject *bases = PyObject_GetAttrString(type, "__mro__");
    ssize_t count = bases ? PyTuple_Size(bases) : 0;
    int plain = count > 0;
    for (ssize_t i = 0; plain && i < count; i++) {
        PyObject *base = PyTuple_GetItem(bases, i);
        plain = is_plain_type(base) ||
                (base->type == &PyType_Type && PyType_GetFlags(base) & HEAP_TYPE);
    }
    if (bases)
        Py_DecRef(bases);
    return plain;
}

/* No callback, or the one with which abstract classes forget a class. */
static int is_quiet(PyObject *reference)
{
    PyObject *callback = PyObject_GetAttrString(reference, "__callback__");
    int quiet = callback == &_Py_NoneStruct;
    if (callback && callback->type == &PyCFunction_Type) {
        PyObject *name = PyObject_GetAttrString(callback, "__name__");
        quiet = name && PyUnicode_CompareWithASCIIString(name, "_destroy") == 0;
        if (name)
            Py_DecRef(name);
    }
    if (callback)
        Py_DecRef(callback);
    return quiet;
}

static int plain_objects(void)
{
    PyObject *objects = PyObject_CallFunctionObjArgs(python.objects, NULL);
    ssize_t count = objects ? PyList_Size(objects) : OBJECTS_MAX;
    int plain = count < OBJECTS_MAX, all = 0;
    const PyObject *seen = NULL; /* the last type; most objects come in rows */
    for (ssize_t i = 0; plain && i < count; i++) {
        PyObject *object = PyList_GetItem(objects, i);
        if (object->type == python.reference)
            plain = is_quiet(object);
        else if (object->type != seen)
            plain = is_plain_type(object->type) || is_plain_class(object->type);
        seen = object->type;
        all |= object == canary;
    }
    if (objects)
        Py_DecRef(objects);
    return plain && all;
}

int quiet_end(void)
{
    int quiet = python.usable && PySys_GetObject("stdout") == out &&
                PySys_GetObject("stderr") == err && same_modules() && quiet_threads() &&
                no_callbacks() && plain_objects();
    PyErr_Clear();
    return quiet;
}
