/* Theory of operation.
 *
 * Init is PID 1 of the sandbox and the only process in it that talks to the host, over one byte
 * stream of frames (proto.h). It is single-threaded and waits in one poll(2): for a frame of the
 * host, output of the program, room in the program's standard input, the death of a child, and,
 * when a zygote outside forked the program, the zygote's word that it ended.
 *
 *     setup ── HELLO (zygote only: the program's pipe ends) ── READY
 *       │
 *     FILE DATA … STDIN …            staging, before the first program only
 *       │
 *     PROGRAM ── BEGAN ── STDOUT STDERR … ── (KILL) ── ENDED ── ENTRY … LISTED
 *       │                                                └ a compiled language comes here twice
 *     GET ── CONTENT … CONTENT_END    after a program only
 *       │
 *     end of the channel: init exits, and the kernel ends the pid namespace with it
 *
 * When the program has ended, or KILL came, everything else in the sandbox is killed and reaped
 * before its last output is drained; so nobody holds the pipes, and no wait can hang. A frame out
 * of place ends the sandbox. Init's clock and verdict are a convenience: the host keeps its own.
 */
#include "init.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "collect.h"
#include "program.h"
#include "proto.h"
#include "stage.h"

enum { STRINGS_MAX = 65536, INPUT_MAX = 64 * 1024 * 1024 };

struct init {
    int control, children, work, staging;
    const struct sandbox *sandbox;
    const struct filter *filter;
    struct program program;
    uint8_t *input;
    size_t input_size;
    int warm;    /* a started-ahead interpreter waits */
    int running; /* a program runs */
    int ran;     /* a program has run: no more staging */
    int list;    /* send the listing after this program */
    int wait_room; /* the program's standard input is full */
    struct timespec began;
};

static _Noreturn void fail(struct init *s, const char *step)
{
    uint8_t error[4];
    put_u32(error, (uint32_t)errno);
    (void)send_frame2(s->control, FRAME_FAILED, error, sizeof error, step, strlen(step));
    _exit(1);
}

/* The host is gone or closed the channel: there is nobody to serve. */
static _Noreturn void leave(void)
{
    _exit(0);
}

static void must_send(int result)
{
    if (result < 0)
        leave();
}

/* ── the end of a program ─────────────────────────────────────────────────────────────────── */

/* Kill and reap until PID 1 is alone. kill(-1) is atomic against fork: nothing slips past it. */
static void kill_everything(void)
{
    struct timespec pause = {0, 200 * 1000};
    while (kill(-1, SIGKILL) == 0 || errno != ESRCH) {
        while (waitpid(-1, NULL, __WALL | WNOHANG) > 0)
            continue;
        if (kill(-1, 0) < 0 && errno == ESRCH)
            break;
        nanosleep(&pause, NULL); /* a zombie whose parent is the zygote outside */
    }
    while (waitpid(-1, NULL, __WALL | WNOHANG) > 0)
        continue;
}

/* Forward what there is; 0 at end of file, 1 when more may come, 2 when nothing is there now. */
static int forward(struct init *s, int fd, uint8_t type)
{
    static uint8_t buffer[PAYLOAD_OUT_MAX];
    ssize_t n = read(fd, buffer, sizeof buffer);
    if (n < 0)
        return errno == EINTR ? 1 : errno == EAGAIN ? 2 : 0;
    if (n > 0)
        must_send(send_frame(s->control, type, buffer, (size_t)n));
    return n > 0;
}

static void drain(struct init *s, int fd, uint8_t type)
{
    while (fd >= 0 && forward(s, fd, type) == 1)
        continue;
}

static uint64_t microseconds_since(const struct timespec *began)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)(now.tv_sec - began->tv_sec) * 1000000U +
           (uint64_t)(now.tv_nsec / 1000) - (uint64_t)(began->tv_nsec / 1000);
}

static void finish(struct init *s, const struct ending *e)
{
    uint64_t wall = microseconds_since(&s->began);
    kill_everything();
    drain(s, s->program.out, FRAME_STDOUT);
    drain(s, s->program.err, FRAME_STDERR);
    program_close(&s->program);
    s->running = 0;
    uint8_t payload[36];
    put_u32(payload, (uint32_t)e->status);
    put_u64(payload + 4, e->user_us);
    put_u64(payload + 12, e->system_us);
    put_u64(payload + 20, e->maxrss_kb);
    put_u64(payload + 28, wall);
    must_send(send_frame(s->control, FRAME_ENDED, payload, sizeof payload));
    if (s->list)
        must_send(collect_list(s->control, s->work));
}

static void ended(struct init *s, const struct ending *e)
{
    if (!s->running) {
        errno = e->status;
        fail(s, "warm interpreter died");
    }
    finish(s, e);
}

static void reap(struct init *s)
{
    struct signalfd_siginfo info;
    struct rusage usage;
    int status;
    pid_t pid;
    while (read(s->children, &info, sizeof info) > 0)
        continue;
    while ((pid = wait4(-1, &status, __WALL | WNOHANG, &usage)) > 0) {
        if (pid != s->program.pid)
            continue;
        struct ending e;
        ending_from(&e, status, &usage);
        ended(s, &e);
        return;
    }
}

static void ended_outside(struct init *s)
{
    struct ending e;
    ssize_t n = read(s->program.ending, &e, sizeof e);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n != (ssize_t)sizeof e) {
        errno = 0;
        fail(s, "zygote died");
    }
    ended(s, &e);
}

/* The host wants it over. For a child of ours the wait status comes by the ordinary way. */
static void kill_program(struct init *s)
{
    if (s->running)
        (void)kill(-1, SIGKILL);
}

/* ── frames of the host ───────────────────────────────────────────────────────────────────── */

static void on_file(struct init *s, struct cursor *c)
{
    char path[4096];
    if (c->left == 0 || c->left >= sizeof path || memchr(c->at, 0, c->left)) {
        errno = EPROTO;
        fail(s, "stage");
    }
    memcpy(path, c->at, c->left);
    path[c->left] = 0;
    if (s->staging >= 0)
        close(s->staging);
    s->staging = stage_open(path);
    if (s->staging < 0)
        fail(s, "stage");
}

static void on_data(struct init *s, struct cursor *c)
{
    if (s->staging < 0 || write_all(s->staging, c->at, c->left) < 0)
        fail(s, "stage data");
}

static void on_stdin(struct init *s, struct cursor *c)
{
    uint8_t *grown = NULL;
    if (s->input_size + c->left <= INPUT_MAX)
        grown = realloc(s->input, s->input_size + c->left + 1);
    if (!grown) {
        errno = ENOMEM;
        fail(s, "stdin");
    }
    memcpy(grown + s->input_size, c->at, c->left);
    s->input = grown;
    s->input_size += c->left;
}

static void feed(struct init *s)
{
    struct program *p = &s->program;
    s->wait_room = 0;
    while (p->in >= 0 && p->input_left > 0) {
        ssize_t n = write(p->in, p->input, p->input_left);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN) {
            s->wait_room = 1;
            return;
        }
        if (n < 0)
            break; /* it closed its standard input */
        p->input += n;
        p->input_left -= (size_t)n;
    }
    if (p->in >= 0)
        close(p->in);
    p->in = -1;
}

static int send_strings(int fd, char **strings)
{
    for (; *strings; strings++)
        if (write_all(fd, *strings, strlen(*strings) + 1) < 0)
            return -1;
    return 0;
}

/* The job of a waiting interpreter: count of arguments, arguments, NAME=VALUE …, each with NUL. */
static const char *release(struct init *s, char **args, char **env)
{
    char count[16];
    unsigned n = 0, digits = sizeof count - 1;
    while (args[n])
        n++;
    count[digits] = 0;
    do
        count[--digits] = (char)('0' + n % 10);
    while (n /= 10);
    int go = s->program.go;
    if (write_all(go, count + digits, sizeof count - digits) < 0 || send_strings(go, args) < 0 ||
        send_strings(go, env) < 0)
        return "release";
    close(go);
    s->program.go = -1;
    s->warm = 0;
    return NULL;
}

/* The run needs a fresh interpreter: the one that waits has to go, unheard. */
static void discard_warm(struct init *s)
{
    struct signalfd_siginfo info;
    kill_everything();
    while (read(s->children, &info, sizeof info) > 0)
        continue;
    program_close(&s->program);
    s->warm = 0;
}

static const char *start(struct init *s, int warm, char **argv, char **env)
{
    if (warm)
        return s->warm ? release(s, argv, env) : "no warm interpreter";
    struct far_ends far;
    if (!argv[0])
        return "no program";
    if (s->warm)
        discard_warm(s);
    const char *failed = program_pipes(&s->program, &far, 0, 0);
    if (failed)
        return failed;
    return program_exec(&s->program, &far, argv, env, s->sandbox->processes, s->filter);
}

static void on_program(struct init *s, struct cursor *c)
{
    int warm = take_u8(c) == 1;
    s->list = take_u8(c) == 1;
    char **argv = take_strings(c, STRINGS_MAX);
    char **env = take_strings(c, STRINGS_MAX);
    errno = EPROTO;
    if (c->bad || c->left || s->running)
        fail(s, "program frame");
    if (s->staging >= 0)
        close(s->staging);
    s->staging = -1;
    clock_gettime(CLOCK_MONOTONIC, &s->began);
    const char *failed = start(s, warm, argv, env);
    if (failed)
        fail(s, failed);
    free_strings(argv);
    free_strings(env);
    s->running = s->ran = 1;
    s->program.input = s->input;
    s->program.input_left = s->input_size;
    must_send(send_frame(s->control, FRAME_BEGAN, NULL, 0));
    feed(s);
}

static void on_get(struct init *s, struct cursor *c)
{
    char path[4096];
    if (c->left == 0 || c->left >= sizeof path || memchr(c->at, 0, c->left)) {
        errno = EPROTO;
        fail(s, "get");
    }
    memcpy(path, c->at, c->left);
    path[c->left] = 0;
    must_send(collect_get(s->control, s->work, path));
}

/* Which frames fit when: staging before the first program, GET between and after programs. */
static int in_order(const struct init *s, uint8_t type)
{
    switch (type) {
    case FRAME_FILE:
    case FRAME_DATA:
    case FRAME_STDIN:
        return !s->ran;
    case FRAME_PROGRAM:
        return !s->running;
    case FRAME_GET:
        return s->ran && !s->running;
    default:
        return type == FRAME_KILL;
    }
}

static void on_frame(struct init *s)
{
    uint8_t type, *payload;
    uint32_t size;
    if (receive_frame(s->control, &type, &payload, &size) <= 0)
        leave();
    struct cursor c = {payload, size, 0};
    if (!in_order(s, type)) {
        errno = EPROTO;
        fail(s, "frame out of order");
    }
    switch (type) {
    case FRAME_FILE:
        on_file(s, &c);
        break;
    case FRAME_DATA:
        on_data(s, &c);
        break;
    case FRAME_STDIN:
        on_stdin(s, &c);
        break;
    case FRAME_PROGRAM:
        on_program(s, &c);
        break;
    case FRAME_KILL:
        kill_program(s);
        break;
    default:
        on_get(s, &c);
    }
    free(payload);
}

/* ── preparing and waiting ────────────────────────────────────────────────────────────────── */

static void start_warm(struct init *s)
{
    struct far_ends far;
    int zygote = s->sandbox->warm == WARM_ZYGOTE;
    const char *failed = program_pipes(&s->program, &far, 1, zygote);
    if (failed)
        fail(s, failed);
    if (zygote) {
        int fds[] = {far.in, far.out, far.err, far.go, far.ending};
        must_send(send_frame_fds(s->control, FRAME_HELLO, fds, 5));
        far_close(&far);
    } else {
        /* A blank, because an interpreter that looks at its first line would find an empty
         * program finished; staging truncates it, and nobody has read further. */
        int source = stage_open(s->sandbox->source);
        if (source < 0 || write_all(source, " ", 1) < 0)
            fail(s, "warm source");
        close(source);
        failed = program_exec(&s->program, &far, s->sandbox->argv, s->sandbox->env,
                              s->sandbox->processes, s->filter);
        if (failed)
            fail(s, failed);
    }
    s->warm = 1;
}

/* The interpreter writes one byte when it waits; the host may give up meanwhile. */
static void await_warm(struct init *s)
{
    struct pollfd polled[] = {{s->program.go, POLLIN, 0}, {s->control, 0, 0}};
    uint8_t byte;
    while (poll(polled, 2, -1) < 0 && errno == EINTR)
        continue;
    if (polled[1].revents)
        leave();
    errno = 0;
    if (read(s->program.go, &byte, 1) != 1)
        fail(s, "warm interpreter did not start");
}

static void wait_and_serve(struct init *s)
{
    struct program *p = &s->program;
    struct pollfd polled[] = {
        {s->control, POLLIN, 0},   {s->children, POLLIN, 0},
        {p->out, POLLIN, 0},       {p->err, POLLIN, 0},
        {s->wait_room ? p->in : -1, POLLOUT, 0}, {p->ending, POLLIN, 0},
    };
    if (poll(polled, 6, -1) < 0) {
        if (errno == EINTR)
            return;
        fail(s, "poll");
    }
    if (polled[2].revents && forward(s, p->out, FRAME_STDOUT) == 0) {
        close(p->out);
        p->out = -1;
    }
    if (polled[3].revents && forward(s, p->err, FRAME_STDERR) == 0) {
        close(p->err);
        p->err = -1;
    }
    if (polled[4].revents)
        feed(s);
    if (polled[0].revents)
        on_frame(s);
    if (polled[1].revents)
        reap(s);
    else if (polled[5].revents && p->ending == polled[5].fd)
        ended_outside(s);
}

_Noreturn void init_serve(int control, const struct sandbox *sandbox, const struct filter *filter)
{
    struct init s = {.control = control, .staging = -1, .sandbox = sandbox, .filter = filter};
    s.program = (struct program){0, -1, -1, -1, -1, -1, NULL, 0};
    sigset_t child;
    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    const char *failed = setup_sandbox(sandbox);
    if (failed)
        fail(&s, failed);
    if (sigprocmask(SIG_BLOCK, &child, NULL) < 0)
        fail(&s, "signal mask");
    s.children = signalfd(-1, &child, SFD_CLOEXEC | SFD_NONBLOCK);
    s.work = open("/work", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (s.children < 0 || s.work < 0)
        fail(&s, "descriptors");
    if (sandbox->warm != WARM_NONE) {
        start_warm(&s);
        await_warm(&s);
    }
    must_send(send_frame(control, FRAME_READY, NULL, 0));
    for (;;)
        wait_and_serve(&s);
}
