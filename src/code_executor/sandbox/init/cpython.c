/* The zygote's native part: CPython.
 *
 * Theory of operation. bootstrap/zygote.py, which CPython imports as sitecustomize, puts
 * cpython_main() into sys.path_hooks. `python3 main.py` asks those hooks about its argument when
 * its own start-up is complete, just before it would open the file, and with no Python frame on
 * the stack. The zygote serves forks in that call. A child goes on in it: it does what CPython's
 * pymain_run_python() does next (run the file as __main__, print what was not caught, find the exit
 * code), in CPython's own functions, and then finalizes with Py_FinalizeEx().
 *
 * Why the file is run here and not by returning: a finalizing interpreter first does what a program
 * can observe (joins threads, calls atexit functions, tears modules down, flushes), then frees
 * everything it has, which for a forked one means to copy every page it shares with the zygote,
 * some 9 ms for nothing. So when the observable part is over we leave with _exit(), and for that
 * the exit code must be known in advance. Where leaving early could be observed (other threads
 * still run, a standard stream was replaced) the interpreter finalizes to its end.
 *
 * CPython's headers are not needed: these few functions are in its stable interface, and are
 * resolved in the interpreter that loads this library.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "zygote.h"

typedef struct object PyObject;
struct compiler_flags {
    int flags, feature_version;
};
enum { FILE_INPUT = 257, PRINT_RAW = 1, EXIT_NOT_FLUSHED = 120, MODULES_MAX = 4096 };

extern PyObject *PyExc_SystemExit, *PyExc_KeyboardInterrupt;
extern PyObject _Py_NoneStruct, PyLong_Type;
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

/* What bootstrap/zygote.py gives us; references held for ever. */
static struct {
    PyObject *touch; /* () after the fork, while there is time */
    PyObject *begin; /* (job: bytes): put the run's arguments and environment in place */
    PyObject *end;   /* () -> how much of the interpreter's end is needed, enum rest */
    int minor;       /* of the interpreter's version */
    int single;      /* it is in its sandbox already and serves one run itself, without a fork */
} python;
/* sys.modules when the zygote was warm, in its order: compared by address, since to count a
 * reference in each key would copy half of the pages that are shared with the zygote. */
static struct {
    PyObject *name, *module;
} warm[MODULES_MAX];
static size_t warm_count;
static struct stat streams[3];
static PyObject *standard[2]; /* sys.stdout and sys.stderr */
static int exit_code;

void cpython_setup(PyObject *touch, PyObject *begin, PyObject *end, int minor, int single)
{
    python.touch = touch;
    python.begin = begin;
    python.end = end;
    python.minor = minor;
    python.single = single;
    Py_IncRef(touch);
    Py_IncRef(begin);
    Py_IncRef(end);
}

static void remember_modules(void)
{
    ssize_t at = 0;
    warm_count = 0;
    while (warm_count < MODULES_MAX && PyDict_Next(PyImport_GetModuleDict(), &at,
                                                   &warm[warm_count].name, &warm[warm_count].module))
        warm_count++;
}

/* Whether sys.modules holds what it held then and nothing else, but for another __main__. */
int cpython_modules_unchanged(void)
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

static _Noreturn void give_up(void)
{
    PyErr_Print();
    _exit(126);
}

static void flush(PyObject *file)
{
    PyObject *method = file ? PyObject_GetAttrString(file, "flush") : NULL;
    PyObject *result = method ? PyObject_CallFunctionObjArgs(method, NULL) : NULL;
    if (!result)
        PyErr_Clear();
}

/* sys.stderr.flush(), sys.stdout.flush(), as CPython does when it has run a file. */
static void flush_io(void)
{
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    flush(PySys_GetObject("stderr"));
    flush(PySys_GetObject("stdout"));
    PyErr_Restore(type, value, traceback);
}

static void write_reason(PyObject *reason)
{
    PyObject *file = PySys_GetObject("stderr");
    if (file && file != &_Py_NoneStruct)
        (void)PyFile_WriteObject(reason, file, PRINT_RAW);
    PyErr_Clear();
    PySys_WriteStderr("\n");
}

/* sys.exit(): the code, or the reason on standard error and 1 (CPython's handle_system_exit). */
static int system_exit(void)
{
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    PyErr_NormalizeException(&type, &value, &traceback);
    PyObject *code = value ? PyObject_GetAttrString(value, "code") : NULL;
    int result = 0;
    PyErr_Clear();
    if (code && code != &_Py_NoneStruct) {
        if (PyObject_IsInstance(code, &PyLong_Type) == 1) {
            result = (int)PyLong_AsLong(code);
        } else {
            write_reason(code);
            result = 1;
        }
    }
    PyErr_Clear();
    if (code)
        Py_DecRef(code);
    Py_DecRef(type);
    if (value)
        Py_DecRef(value);
    if (traceback)
        Py_DecRef(traceback);
    return result;
}

/* Run /work/main.py as __main__; its exit code, or -SIGINT for an interrupt nobody caught. */
static int run_file(void)
{
    PyObject *dict = PyModule_GetDict(PyImport_AddModule("__main__"));
    struct compiler_flags flags = {0, python.minor};
    FILE *file = fopen("/work/main.py", "rb");
    if (!file)
        give_up();
    PyObject *result =
        PyRun_FileExFlags(file, "/work/main.py", FILE_INPUT, dict, dict, 1, &flags);
    int code = 0;
    flush_io();
    if (result) {
        Py_DecRef(result);
    } else if (PyErr_ExceptionMatches(PyExc_SystemExit)) {
        code = system_exit();
    } else {
        code = PyErr_Occurred() == PyExc_KeyboardInterrupt ? -SIGINT : 1;
        PyErr_Print();
    }
    if (PyDict_DelItemString(dict, "__file__") < 0 || PyDict_DelItemString(dict, "__cached__") < 0)
        PyErr_Clear();
    return code;
}

static _Noreturn void leave(int code, int early)
{
    if (code == -SIGINT) {
        signal(SIGINT, SIG_DFL);
        kill(getpid(), SIGINT);
        code = 128 + SIGINT;
    }
    if (early)
        _exit(code & 0xff);
    exit(code);
}

/* The interpreter lets its own dictionary go when nothing is left that a program could see but
 * what its last finalizers wrote. */
static void observable_part_is_over(PyObject *capsule)
{
    (void)capsule;
    flush(standard[1]);
    flush(standard[0]);
    fflush(NULL);
    leave(exit_code, 1);
}

static int streams_untouched(void)
{
    for (int fd = 1; fd < 3; fd++) {
        struct stat now;
        if (fstat(fd, &now) < 0 || now.st_ino != streams[fd].st_ino ||
            now.st_dev != streams[fd].st_dev)
            return 0;
    }
    return 1;
}

enum rest {
    ALL = 0,           /* to the last byte */
    TEAR_DOWN = 1,     /* what a program can observe, but not what only frees memory */
    NOTHING = 2,
};

/* Joins threads and calls atexit functions (Py_FinalizeEx() finds both done), and asks. */
static enum rest rest_needed(void)
{
    PyObject *answer = PyObject_CallFunctionObjArgs(python.end, NULL);
    if (!answer) {
        PyErr_Clear();
        return ALL;
    }
    long rest = PyLong_AsLong(answer);
    Py_DecRef(answer);
    if (!streams_untouched())
        return ALL;
    return rest == NOTHING ? NOTHING : rest == TEAR_DOWN ? TEAR_DOWN : ALL;
}

static void leave_when_torn_down(void)
{
    PyObject *dict = PyInterpreterState_GetDict(PyInterpreterState_Get());
    PyObject *capsule = PyCapsule_New(&exit_code, "exit", observable_part_is_over);
    for (int i = 0; i < 2; i++)
        if ((standard[i] = PySys_GetObject(i ? "stderr" : "stdout")))
            Py_IncRef(standard[i]);
    if (dict && capsule && PyDict_SetItemString(dict, "code_executor.exit", capsule) == 0)
        Py_DecRef(capsule);
    PyErr_Clear();
}

static _Noreturn void finalize(int code)
{
    exit_code = code;
    switch (rest_needed()) {
    case NOTHING:
        flush_io();
        fflush(NULL);
        leave(code, 1);
    case TEAR_DOWN:
        leave_when_torn_down();
        break;
    case ALL:
        break;
    }
    if (Py_FinalizeEx() < 0)
        code = EXIT_NOT_FLUSHED;
    leave(code, 0);
}

static void call(PyObject *callable, PyObject *argument)
{
    PyObject *result = PyObject_CallFunctionObjArgs(callable, argument, NULL);
    if (!result)
        give_up();
    Py_DecRef(result);
}

/* The path hook. Never returns: the zygote serves in it, and a child ends in it. */
PyObject *cpython_main(PyObject *path)
{
    static const struct hooks HOOKS = {
        PyOS_BeforeFork,
        PyOS_AfterFork_Parent,
        PyOS_AfterFork_Child,
    };
    char *job;
    (void)path;
    remember_modules(); /* only now: importing puts a module at the end once more when it is done */
    if (!python.single && zygote_serve(&HOOKS) < 0) {
        fputs("zygote: cannot serve\n", stderr);
        _exit(1);
    }
    call(python.touch, NULL);
    size_t size = zygote_await(&job);
    PyObject *bytes = PyBytes_FromStringAndSize(job, (ssize_t)size);
    free(job);
    if (!bytes)
        give_up();
    call(python.begin, bytes);
    Py_DecRef(bytes);
    /* This call of a hook counts as one level of recursion; the program is to have them all. */
    Py_LeaveRecursiveCall();
    for (int fd = 0; fd < 3; fd++)
        if (fstat(fd, &streams[fd]) < 0)
            give_up();
    finalize(run_file());
}
