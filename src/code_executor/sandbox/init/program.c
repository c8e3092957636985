#include "program.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "proto.h"

enum { GO_FD = 3, REPORT_FD = 4 };

static void close_one(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

void far_leave(struct program *p, struct far_ends *far)
{
    p->held[0] = far->out;
    p->held[1] = far->err;
    far->out = far->err = -1;
    close_one(&far->in);
    close_one(&far->go);
    close_one(&far->ending);
}

void program_none(struct program *p)
{
    *p = (struct program){0, -1, -1, -1, {-1, -1}, -1, -1, NULL, 0};
}

void program_close(struct program *p)
{
    close_one(&p->in);
    close_one(&p->out);
    close_one(&p->err);
    close_one(&p->held[0]);
    close_one(&p->held[1]);
    close_one(&p->go);
    close_one(&p->ending);
    p->pid = 0;
}

static int pipe_with(int *near, int *far, int near_writes)
{
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) < 0)
        return -1;
    *near = ends[near_writes];
    *far = ends[!near_writes];
    /* Only init's end: the program's must block, as a pipe of a shell does. */
    return fcntl(*near, F_SETFL, O_NONBLOCK | (near_writes ? O_WRONLY : O_RDONLY));
}

/* The program's standard streams belong to it, so that it can open /dev/stdout. */
static int stream_pipes(struct program *p, struct far_ends *far)
{
    act_as_program();
    int failed = pipe_with(&p->in, &far->in, 1) < 0 || pipe_with(&p->out, &far->out, 0) < 0 ||
                 pipe_with(&p->err, &far->err, 0) < 0;
    act_as_init();
    return failed ? -1 : 0;
}

const char *program_pipes(struct program *p, struct far_ends *far, int warm, int zygote)
{
    int pair[2];
    program_none(p);
    *far = (struct far_ends){-1, -1, -1, -1, -1};
    if (stream_pipes(p, far) < 0)
        return "pipes";
    if (zygote && pipe_with(&p->ending, &far->ending, 0) < 0)
        return "ending pipe";
    if (!warm)
        return NULL;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
        return "go socket";
    p->go = pair[0];
    far->go = pair[1];
    return NULL;
}

/* In the child: put the far ends at 0, 1, 2, the go socket at 3, the report pipe behind it. */
static const char *arrange(const struct far_ends *far, int *report)
{
    int high = fcntl(*report, F_DUPFD_CLOEXEC, 16);
    int go = far->go >= 0 ? fcntl(far->go, F_DUPFD_CLOEXEC, 16) : -1;
    int in = fcntl(far->in, F_DUPFD_CLOEXEC, 16);
    int out = fcntl(far->out, F_DUPFD_CLOEXEC, 16);
    int err = fcntl(far->err, F_DUPFD_CLOEXEC, 16);
    if (high < 0 || in < 0 || out < 0 || err < 0)
        return "duplicate descriptors";
    if (dup2(in, 0) < 0 || dup2(out, 1) < 0 || dup2(err, 2) < 0)
        return "standard streams";
    if (go >= 0 && dup2(go, GO_FD) < 0)
        return "go socket";
    if (dup3(high, REPORT_FD, O_CLOEXEC) < 0)
        return "report pipe";
    *report = REPORT_FD;
    if (go < 0)
        close(GO_FD);
    return NULL;
}

static void report_failure(int report, const char *step)
{
    uint8_t error[4];
    put_u32(error, (uint32_t)errno);
    if (write_all(report, error, sizeof error) == 0)
        (void)write_all(report, step, strlen(step));
}

static void child(struct far_ends *far, int report, char **argv, char **env, uint32_t processes,
                  const struct filter *filter)
{
    sigset_t none;
    sigemptyset(&none);
    const char *failed = arrange(far, &report);
    if (!failed && sigprocmask(SIG_SETMASK, &none, NULL) < 0)
        failed = "signal mask";
    if (!failed)
        failed = become_program(processes, filter, REPORT_FD);
    if (!failed) {
        execve(argv[0], argv, env);
        failed = "exec";
    }
    report_failure(report, failed);
    _exit(127);
}

/* The child's step and errno, or NULL when its exec closed the pipe. */
static const char *await_exec(int report)
{
    static char step[64];
    uint8_t error[4];
    if (read_all(report, error, sizeof error) < 0)
        return NULL;
    ssize_t n = read(report, step, sizeof step - 1);
    step[n > 0 ? n : 0] = 0;
    struct cursor c = {error, sizeof error, 0};
    errno = (int)take_u32(&c);
    return step;
}

const char *program_exec(struct program *p, struct far_ends *far, char **argv, char **env,
                         uint32_t processes, const struct filter *filter)
{
    int report[2];
    if (pipe2(report, O_CLOEXEC) < 0)
        return "report pipe";
    p->pid = fork();
    if (p->pid == 0)
        child(far, report[1], argv, env, processes, filter);
    close(report[1]);
    const char *failed = p->pid < 0 ? "fork" : await_exec(report[0]);
    int saved = errno;
    close(report[0]);
    far_leave(p, far);
    errno = saved;
    return failed;
}

static uint64_t microseconds(struct timeval t)
{
    return (uint64_t)t.tv_sec * 1000000U + (uint64_t)t.tv_usec;
}

void ending_from(struct ending *e, int status, const struct rusage *usage)
{
    memset(e, 0, sizeof *e);
    e->status = status;
    e->user_us = microseconds(usage->ru_utime);
    e->system_us = microseconds(usage->ru_stime);
    e->maxrss_kb = (uint64_t)usage->ru_maxrss;
}
