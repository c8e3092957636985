/* What we use of CPython, in its own words: nearly all of it is its stable interface. No header of
 * CPython is needed: the interpreter that loads the library resolves these. */
#ifndef CE_CAPI_H
#define CE_CAPI_H

#include <stddef.h>
#include <stdio.h>
#include <sys/types.h>

typedef struct object {
    ssize_t references;
    struct object *type;
} PyObject;
struct compiler_flags {
    int flags, feature_version;
};

extern PyObject *PyExc_SystemExit, *PyExc_KeyboardInterrupt;
extern PyObject _Py_NoneStruct, PyLong_Type, PyType_Type, PyCFunction_Type;
extern unsigned long PyType_GetFlags(PyObject *type);
extern PyObject *PyUnicode_InternFromString(const char *text);
extern PyObject *_PyType_Lookup(PyObject *type, PyObject *name);
extern int PyUnicode_CompareWithASCIIString(PyObject *text, const char *other);
extern void PyOS_BeforeFork(void), PyOS_AfterFork_Parent(void), PyOS_AfterFork_Child(void);
extern PyObject *PyBytes_FromStringAndSize(const char *bytes, ssize_t size);
extern PyObject *PyObject_CallFunctionObjArgs(PyObject *callable, ...);
extern PyObject *PyObject_GetAttrString(PyObject *object, const char *name);
extern PyObject *PyImport_AddModule(const char *name), *PyImport_GetModuleDict(void);
extern int PyDict_Next(PyObject *dict, ssize_t *at, PyObject **key, PyObject **value);
extern PyObject *PyModule_GetDict(PyObject *module);
extern int PyDict_DelItemString(PyObject *dict, const char *key);
extern int PyDict_SetItemString(PyObject *dict, const char *key, PyObject *value);
extern PyObject *PyRun_FileExFlags(FILE *file, const char *name, int start, PyObject *globals,
                                   PyObject *locals, int close, struct compiler_flags *flags);
extern PyObject *PyErr_Occurred(void);
extern int PyErr_ExceptionMatches(PyObject *exception);
extern void PyErr_Fetch(PyObject **type, PyObject **value, PyObject **traceback);
extern void PyErr_NormalizeException(PyObject **type, PyObject **value, PyObject **traceback);
extern void PyErr_Restore(PyObject *type, PyObject *value, PyObject *traceback);
extern void PyErr_Clear(void), PyErr_Print(void);
extern int PyObject_IsInstance(PyObject *object, PyObject *class);
extern long PyLong_AsLong(PyObject *number);
extern PyObject *PySys_GetObject(const char *name);
extern void PySys_WriteStderr(const char *format, ...);
extern int PyFile_WriteObject(PyObject *object, PyObject *file, int flags);
extern void Py_IncRef(PyObject *object), Py_DecRef(PyObject *object);
extern PyObject *PyCapsule_New(void *pointer, const char *name, void (*destructor)(PyObject *));
extern void *PyInterpreterState_Get(void);
extern PyObject *PyInterpreterState_GetDict(void *interpreter);
extern void Py_LeaveRecursiveCall(void);
extern int Py_FinalizeEx(void);
extern PyObject *PyDict_GetItemString(PyObject *dict, const char *key);
extern PyObject *PyTuple_GetItem(PyObject *tuple, ssize_t at);
extern ssize_t PyTuple_Size(PyObject *tuple), PyList_Size(PyObject *list);
extern PyObject *PyList_GetItem(PyObject *list, ssize_t at);
extern int PyBytes_AsStringAndSize(PyObject *bytes, char **start, ssize_t *size);
extern PyObject *PyLong_FromLong(long value);
extern int PyObject_SetAttrString(PyObject *object, const char *name, PyObject *value);
extern void *PyInterpreterState_ThreadHead(void *interpreter), *PyThreadState_Next(void *thread);
extern void *PyObject_Malloc(size_t size);
extern ssize_t PyGC_Collect(void);

/* Where memory for small objects comes from. */
struct arena_allocator {
    void *context;
    void *(*alloc)(void *context, size_t size);
    void (*free)(void *context, void *arena, size_t size);
};
extern void PyObject_GetArenaAllocator(struct arena_allocator *allocator);
extern void PyObject_SetArenaAllocator(struct arena_allocator *allocator);

/* A module of an extension, as its loader wants it described. */
struct method {
    const char *name;
    PyObject *(*function)(PyObject *self, PyObject *arguments);
    int flags;
    const char *help;
};
struct module {
    struct {
        PyObject head;
        void *init;
        ssize_t index;
        PyObject *copy;
    } base;
    const char *name, *help;
    ssize_t size;
    const struct method *methods;
    void *slots, *traverse, *clear, *free;
};
enum { TAKES_ARGUMENTS = 1, TAKES_NOTHING = 4, TAKES_ONE = 8, STABLE_INTERFACE = 3 };
extern PyObject *PyModule_Create2(struct module *module, int interface);
extern PyObject *Py_BuildValue(const char *format, ...);
extern int PyArg_ParseTuple(PyObject *arguments, const char *format, ...);

#endif
