/* The end of a program: everything else is killed, the last output drained, the facts told. */
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "collect.h"
#include "proto.h"
#include "state.h"

void kill_everything(void)
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

int forward(struct init *s, int fd, uint8_t type)
{
    static uint8_t buffer[PAYLOAD_OUT_MAX];
    ssize_t n = read(fd, buffer, sizeof buffer);
    if (n < 0)
        return errno == EINTR;
    if (n > 0)
        must_send(send_frame(s->control, type, buffer, (size_t)n));
    return n > 0;
}

static void drain(struct init *s, int fd, uint8_t type)
{
    while (fd >= 0 && forward(s, fd, type))
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
    hold_frames();
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
    must_send(release_frames(s->control));
}

/* What waited for its job is gone, or the zygote with it: nothing of the program has been executed. */
static _Noreturn void unstarted(struct init *s)
{
    errno = 0;
    fail(s, "warm interpreter died");
}

/* Whether an interpreter that waited has read its job; the socket tells of what was left unread. */
static int took_job(const struct init *s)
{
    char none;
    return s->program.go < 0 || recv(s->program.go, &none, 1, MSG_DONTWAIT) >= 0 || errno != ECONNRESET;
}

static void ended(struct init *s, const struct ending *e)
{
    if (!s->running || !took_job(s))
        unstarted(s);
    finish(s, e);
}

void reap(struct init *s)
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

void ended_outside(struct init *s)
{
    struct ending e;
    ssize_t n = read(s->program.ending, &e, sizeof e);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n != (ssize_t)sizeof e) {
        if (!s->running)
            unstarted(s);
        errno = 0;
        fail(s, "zygote died");
    }
    ended(s, &e);
}
