/* Theory of operation.
 *
 * Init is PID 1 of the sandbox and the only process in it that talks to the host, over one byte
 * stream of frames (proto.h). It is single-threaded and waits in one poll(2): for a frame of the
 * host, output of the program, room in the program's standard input, the death of a child, and,
 * when a zygote outside forked the program, the zygote's word that it ended.
 *
 *     setup ── (the zygote is asked for a child, or an interpreter started ahead) ── READY
 *       │
 *     FILE DATA … STDIN …            staging, before the first program only
 *       │
 *     PROGRAM ── (BEGAN) ── STDOUT STDERR … ── (KILL) ── ENDED ── ENTRY … LISTED
 *       │                                                └ a compiled language comes here twice
 *     GET, BUILT ── CONTENT … CONTENT_END    after a program only
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
#include <string.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "program.h"
#include "proto.h"
#include "stage.h"
#include "state.h"
#include "zygote.h"

_Noreturn void fail(struct init *s, const char *step)
{
    uint8_t error[4];
    put_u32(error, (uint32_t)errno);
    (void)send_frame2(s->control, FRAME_FAILED, error, sizeof error, step, strlen(step));
    _exit(1);
}

_Noreturn void leave(void)
{
    _exit(0);
}

void must_send(int result)
{
    if (result < 0)
        leave();
}

/* Ask for a child that becomes the program here: what zygote.c receives, in its order. Nobody but
 * init is in the sandbox yet, and what it asks with is closed before the child can be. */
static const char *ask_zygote(struct init *s, struct far_ends *far)
{
    const struct sandbox *box = s->sandbox;
    int fds[ZYGOTE_FDS_MAX] = {(int)syscall(SYS_pidfd_open, getpid(), 0), far->in, far->out,
                               far->err, far->go, far->ending};
    memcpy(fds + ZYGOTE_FIXED_FDS, box->procs, box->proc_count * sizeof(int));
    struct pollfd polled = {box->zygote, POLLOUT, 0};
    int sent;
    while ((sent = send_fds(box->zygote, &box->processes, sizeof box->processes, fds,
                            ZYGOTE_FIXED_FDS + box->proc_count)) < 0 &&
           errno == EAGAIN && poll(&polled, 1, -1) > 0)
        continue;
    int saved = errno;
    close(fds[0]);
    close(box->zygote);
    for (size_t i = 0; i < box->proc_count; i++)
        close(box->procs[i]);
    far_leave(&s->program, far);
    errno = saved;
    return sent < 0 ? "zygote" : NULL;
}

static void start_warm(struct init *s)
{
    struct far_ends far;
    int zygote = s->sandbox->warm == WARM_ZYGOTE;
    const char *failed = program_pipes(&s->program, &far, 1, zygote);
    if (!failed && zygote)
        failed = ask_zygote(s, &far);
    if (failed)
        fail(s, failed);
    if (!zygote) {
        /* A blank, because an interpreter that looks at its first line would find an empty
         * program finished; staging truncates it, and nobody has read further. */
        int source = stage_open(s->sandbox->source, 0644);
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
    struct pollfd polled[] = {{s->program.go, POLLIN, 0}, {s->host, 0, 0}};
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
        {s->host, POLLIN, 0},   {s->children, POLLIN, 0},
        {p->out, POLLIN, 0},       {p->err, POLLIN, 0},
        {s->wait_room ? p->in : -1, POLLOUT, 0}, {p->ending, POLLIN, 0},
    };
    if (poll(polled, 6, -1) < 0) {
        if (errno == EINTR)
            return;
        fail(s, "poll");
    }
    if (polled[2].revents)
        forward(s, p->out, FRAME_STDOUT);
    if (polled[3].revents)
        forward(s, p->err, FRAME_STDERR);
    if (polled[4].revents)
        feed(s);
    if (polled[0].revents)
        on_frame(s);
    if (polled[1].revents)
        reap(s);
    else if (polled[5].revents && p->ending == polled[5].fd)
        ended_outside(s);
}

_Noreturn void init_serve(int in, int out, const struct sandbox *sandbox,
                          const struct filter *filter)
{
    struct init s = {.host = in, .control = out, .staging = -1, .sandbox = sandbox, .filter = filter};
    program_none(&s.program);
    sigset_t child, blocked;
    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    /* Linux spares PID 1 the SIGPIPE of a program that closed its input; gVisor does not. */
    blocked = child;
    sigaddset(&blocked, SIGPIPE);
    const char *failed = setup_sandbox(sandbox);
    if (failed)
        fail(&s, failed);
    if (sigprocmask(SIG_BLOCK, &blocked, NULL) < 0)
        fail(&s, "signal mask");
    s.children = signalfd(-1, &child, SFD_CLOEXEC | SFD_NONBLOCK);
    s.work = open("/work", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (s.children < 0 || s.work < 0)
        fail(&s, "descriptors");
    if (sandbox->warm != WARM_NONE) {
        start_warm(&s);
        await_warm(&s);
    }
    must_send(send_frame(out, FRAME_READY, NULL, 0));
    for (;;)
        wait_and_serve(&s);
}
