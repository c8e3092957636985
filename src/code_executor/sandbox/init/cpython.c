/* The zygote's native part: CPython.
 *
 * Theory of operation. bootstrap/zygote.py, which CPython imports as sitecustomize, imports
 * this library and puts serve_and_run() into sys.path_hooks. `python3 main.py` asks those hooks
 * about its argument when its own start-up is complete, just before it would open the file, and with no Python frame on
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
 * What a fork costs is above all the pages that the child writes to, since each is copied. So
 * what each child would do alike is done before, and CPython's own calls around a fork are left
 * out (as_new_process): they make locks and thread states anew that another thread may have held,
 * and the zygote has one thread, which holds none.
 */
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "arenas.h"
#include "capi.h"
#include "quiet.h"
#include "watchers.h"
#include "zygote.h"

enum { FILE_INPUT = 257, PRINT_RAW = 1, EXIT_NOT_FLUSHED = 120 };

/* What bootstrap/zygote.py gives us; references held for ever. */
static struct {
    PyObject *make_room; /* () before any fork: the program's __main__ */
    PyObject *begin;     /* (job: bytes): put the run's arguments and environment in place */
    PyObject *end;       /* () -> how much of the interpreter's end is needed, enum rest */
    PyObject *after;     /* pairs of a function and its argument or None, to call after a fork */
    PyObject *thread;    /* threading's main thread, or NULL */
    char *usual;         /* the job that needs no begin() */
    ssize_t usual_size;
    int minor;           /* of the interpreter's version */
    int single;          /* it is in its sandbox already and serves one run itself, without a fork */
} python;
static struct stat streams[3];
static PyObject *ran; /* the program's __main__, whatever became of sys.modules */
static PyObject *standard[2]; /* sys.stdout and sys.stderr */
static int exit_code;

static _Noreturn void give_up(void)
{
    PyErr_Print();
    _exit(126);
}

static int flush(PyObject *file)
{
    PyObject *method = file ? PyObject_GetAttrString(file, "flush") : NULL;
    PyObject *result = method ? PyObject_CallFunctionObjArgs(method, NULL) : NULL;
    int flushed = result != NULL;
    if (!result)
        PyErr_Clear();
    else
        Py_DecRef(result);
    if (method) /* it holds the file */
        Py_DecRef(method);
    return flushed;
}

/* sys.stderr.flush(), sys.stdout.flush(), as CPython does when it has run a file; whether both
 * could be. */
static int flush_io(void)
{
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    int flushed = flush(PySys_GetObject("stderr"));
    flushed = flush(PySys_GetObject("stdout")) && flushed;
    PyErr_Restore(type, value, traceback);
    return flushed;
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

/* Play a program that does nothing: what the first one would look up and lay out is there then,
 * and is not written to pages of each child. */
static void rehearse(void)
{
    static const char PROGRAM[] = "print(end='')\n";
    PyObject *dict = PyModule_GetDict(PyImport_AddModule("__main__"));
    struct compiler_flags flags = {0, python.minor};
    FILE *file = fmemopen((char *)(uintptr_t)PROGRAM, sizeof PROGRAM - 1, "rb");
    PyObject *result =
        file ? PyRun_FileExFlags(file, "/work/main.py", FILE_INPUT, dict, dict, 1, &flags) : NULL;
    if (result)
        Py_DecRef(result);
    PyErr_Clear();
    (void)flush_io();
    (void)quiet_end();
}

/* Run /work/main.py as __main__; its exit code, or -SIGINT for an interrupt nobody caught. */
static int run_file(void)
{
    ran = PyImport_AddModule("__main__");
    Py_IncRef(ran);
    PyObject *dict = PyModule_GetDict(ran);
    struct compiler_flags flags = {0, python.minor};
    FILE *file = fopen("/work/main.py", "rb");
    if (!file)
        give_up();
    PyObject *result =
        PyRun_FileExFlags(file, "/work/main.py", FILE_INPUT, dict, dict, 1, &flags);
    int code = 0;
    (void)flush_io();
    if (result) {
        Py_DecRef(result);
    } else if (PyErr_ExceptionMatches(PyExc_SystemExit)) {
        code = system_exit();
    } else {
        code = PyErr_Occurred() == PyExc_KeyboardInterrupt ? -SIGINT : 1;
        PyErr_Print();
    }
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
    (void)flush(standard[1]);
    (void)flush(standard[0]);
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

/* What CPython does when it has run a file; not before somebody is there to see it. */
static void forget_file(void)
{
    PyObject *dict = PyModule_GetDict(ran);
    if (PyDict_DelItemString(dict, "__file__") < 0 || PyDict_DelItemString(dict, "__cached__") < 0)
        PyErr_Clear();
    Py_DecRef(ran);
}

enum rest {
    ALL = 0,           /* to the last byte */
    TEAR_DOWN = 1,     /* what a program can observe, but not what only frees memory */
    NOTHING = 2,
};

/* Joins threads and calls atexit functions (Py_FinalizeEx() finds both done), and asks. */
static enum rest rest_needed(void)
{
    int unwatched = quiet_collections();
    if (unwatched && streams_untouched() && quiet_end())
        return flush_io() ? NOTHING : ALL;
    forget_file();
    if (!unwatched)
        return ALL;
    PyObject *answer = call_unwatched(python.end);
    if (!answer) {
        PyErr_Clear();
        return ALL;
    }
    long rest = PyLong_AsLong(answer);
    Py_DecRef(answer);
    /* A stream that cannot be flushed (a detached one) has a message and an exit code of its own, and
     * what it holds is written at the very end. */
    if (!streams_untouched() || !flush_io())
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

/* In a child: what a program could find unlike a new process. */
static void as_new_process(void)
{
    for (ssize_t i = 0; i < PyTuple_Size(python.after); i++) {
        PyObject *pair = PyTuple_GetItem(python.after, i);
        PyObject *argument = PyTuple_GetItem(pair, 1);
        call(PyTuple_GetItem(pair, 0), argument == &_Py_NoneStruct ? NULL : argument);
    }
    PyObject *number = python.thread ? PyLong_FromLong(gettid()) : NULL;
    if (number && PyObject_SetAttrString(python.thread, "_native_id", number) < 0)
        give_up();
    if (number)
        Py_DecRef(number);
}

static void with_threads(void)
{
    PyOS_AfterFork_Child();
    as_new_process();
}

static void nothing(void)
{
}

/* A fork of an interpreter with one thread is whole as it is. */
static int serve(void)
{
    static const struct hooks ONE_THREAD = {nothing, nothing, as_new_process};
    static const struct hooks THREADS = {PyOS_BeforeFork, PyOS_AfterFork_Parent, with_threads};
    void *first = PyInterpreterState_ThreadHead(PyInterpreterState_Get());
    return zygote_serve(PyThreadState_Next(first) ? &THREADS : &ONE_THREAD);
}

static void take_job(void)
{
    char *job;
    size_t size = zygote_await(&job);
    if (size != (size_t)python.usual_size || memcmp(job, python.usual, size)) {
        PyObject *bytes = PyBytes_FromStringAndSize(job, (ssize_t)size);
        if (!bytes)
            give_up();
        call(python.begin, bytes);
        Py_DecRef(bytes);
    }
    free(job);
}

/* The path hook. Never returns: the zygote serves in it, and a child ends in it. */
static PyObject *serve_and_run(PyObject *self, PyObject *path)
{
    (void)self;
    (void)path;
    call(python.make_room, NULL);
    quiet_remember(); /* only now: importing puts a module at the end once more when it is done */
    rehearse();
    if (!python.single)
        arenas_use_up();
    arenas_end();
    if (!python.single && serve() < 0) {
        fputs("zygote: cannot serve\n", stderr);
        _exit(1);
    }
    rehearse();
    take_job();
    /* This call of a hook counts as one level of recursion; the program is to have them all. */
    Py_LeaveRecursiveCall();
    for (int fd = 0; fd < 3; fd++)
        if (fstat(fd, &streams[fd]) < 0)
            give_up();
    finalize(run_file());
}

/* (make_room, begin, end, after, usual, minor, single, objects, callbacks, plain, reference) */
static PyObject *setup(PyObject *self, PyObject *arguments)
{
    PyObject *usual, *objects, *callbacks, *plain, *reference;
    (void)self;
    if (!PyArg_ParseTuple(arguments, "OOOOOiiOOOO", &python.make_room, &python.begin, &python.end,
                          &python.after, &usual, &python.minor, &python.single, &objects,
                          &callbacks, &plain, &reference) ||
        PyBytes_AsStringAndSize(usual, &python.usual, &python.usual_size) < 0)
        return NULL;
    PyObject *threading = PyDict_GetItemString(PyImport_GetModuleDict(), "threading");
    if (threading)
        python.thread = PyDict_GetItemString(PyModule_GetDict(threading), "_main_thread");
    if (python.thread)
        Py_IncRef(python.thread);
    Py_IncRef(arguments); /* and so all of them, for ever */
    watchers_setup();
    quiet_setup(objects, callbacks, plain, reference);
    return Py_BuildValue("");
}

static PyObject *keep(PyObject *self, PyObject *object)
{
    (void)self;
    Py_IncRef(object);
    return Py_BuildValue("");
}

static PyObject *untouched(PyObject *self, PyObject *objects)
{
    (void)self;
    return PyLong_FromLong(quiet_untouched(objects));
}

static PyObject *forget(PyObject *self, PyObject *arguments)
{
    const char *name;
    (void)self;
    if (!PyArg_ParseTuple(arguments, "s", &name))
        return NULL;
    zygote_forget(name);
    return Py_BuildValue("");
}

/* `import zygote`, by bootstrap/zygote.py. */
PyObject *PyInit_zygote(void)
{
    static const struct method METHODS[] = {
        {"setup", setup, TAKES_ARGUMENTS, NULL},
        {"serve_and_run", serve_and_run, TAKES_ONE, NULL},
        {"keep", keep, TAKES_ONE, NULL},
        {"untouched", untouched, TAKES_ONE, NULL},
        {"forget", forget, TAKES_ARGUMENTS, NULL},
        {NULL, NULL, 0, NULL},
    };
    static struct module module = {
        .base = {.head = {.references = 1}}, .name = "zygote", .size = -1, .methods = METHODS};
    if (getenv("CE_OWN_FILTER"))
        zygote_filter_in_children();
    if (!getenv("CE_SINGLE")) /* it never forks */
        arenas_begin();
    return PyModule_Create2(&module, STABLE_INTERFACE);
}
