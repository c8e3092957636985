/* The zygote's native part: forking, a shared library loaded into a warm interpreter.
 *
 * Theory of operation. The interpreter (any that can fork and load a library; today CPython)
 * stops before it opens the program's file and calls zygote_serve(). There the parent stays for
 * good: it receives fork requests of sandboxes' inits (zygote.h; SOCK_SEQPACKET on descriptor 3, to
 * which each init has the other end until it has asked), points its children at the sandbox's pid
 * namespace, forks once, and reaps. Only a child returns: it has joined the
 * run's cgroups and namespaces and has become the program (become.h), under the filter that the
 * zygote has (ahead.h); nothing is left to it of the zygote but the interpreter's memory.
 * zygote_await() then waits for the job.
 *
 * The zygote runs no code of a program and holds no secret but the key of its filter. It ends with its socket.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "ahead.h"
#include "become.h"
#include "hugepages.h"
#include "program.h"
#include "zygote.h"

enum { COMMAND_FD = 3, FILTER_FD = 4, GO_FD = 3, CHILDREN_MAX = 4096 };
enum { FD_PIDFD, FD_IN, FD_OUT, FD_ERR, FD_GO, FD_ENDING };

static struct {
    pid_t pid;
    int ending;
} children[CHILDREN_MAX];
static size_t child_count, child_most;
static struct filter filter;
static int in_children, deaths = -1, victim = -1;

static void close_all(const int *fds, size_t count)
{
    for (size_t i = 0; i < count; i++)
        close(fds[i]);
}

/* The number of descriptors received with *processes, all that were sent or none; -1 when the
 * service is gone. */
static int receive(uint32_t *processes, int *fds)
{
    union {
        char space[CMSG_SPACE(ZYGOTE_FDS_MAX * sizeof(int))];
        struct cmsghdr align;
    } control;
    struct iovec part = {processes, sizeof *processes};
    struct msghdr message = {
        .msg_iov = &part,
        .msg_iovlen = 1,
        .msg_control = control.space,
        .msg_controllen = sizeof control.space,
    };
    if (recvmsg(COMMAND_FD, &message, MSG_CMSG_CLOEXEC) != (ssize_t)sizeof *processes)
        return -1;
    struct cmsghdr *c = CMSG_FIRSTHDR(&message);
    if (!c || c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
        return 0;
    size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    memcpy(fds, CMSG_DATA(c), count * sizeof(int));
    if (!(message.msg_flags & MSG_CTRUNC))
        return (int)count;
    /* There was no room for all, and the last are the run's cgroups: rather no child. */
    dprintf(2, "zygote: too many open descriptors\n");
    close_all(fds, count);
    return 0;
}

static const char *join(const int *fds, int count)
{
    for (int i = ZYGOTE_FIXED_FDS; i < count; i++)
        if (write(fds[i], "0", 1) != 1)
            return "join cgroups";
    if (with_key(SYS_setns, fds[FD_PIDFD], CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC |
                                               CLONE_NEWUTS | CLONE_NEWCGROUP) < 0)
        return "join namespaces";
    return NULL;
}

static const char *arrange(const int *fds)
{
    /* Everything received lies above the standard streams and the two fixed descriptors. */
    if (dup2(fds[FD_IN], 0) < 0 || dup2(fds[FD_OUT], 1) < 0 || dup2(fds[FD_ERR], 2) < 0 ||
        dup2(fds[FD_GO], GO_FD) < 0)
        return "descriptors";
    sigset_t none;
    sigemptyset(&none);
    return sigprocmask(SIG_SETMASK, &none, NULL) < 0 ? "signal mask" : NULL;
}

static void enter(uint32_t processes, const int *fds, int count)
{
    int log = fcntl(2, F_DUPFD_CLOEXEC, 64); /* open until the last step but one */
    const char *failed = join(fds, count);
    if (!failed)
        failed = arrange(fds);
    if (!failed && !(failed = become_program(processes, in_children ? &filter : NULL, GO_FD))) {
        forget_key();
        return;
    }
    dprintf(log, "zygote child: %s: %s\n", failed, strerror(errno));
    _exit(126);
}

static void remember(pid_t pid, int ending)
{
    if (child_count == CHILDREN_MAX) {
        close(ending); /* init takes the closed pipe for the end */
        return;
    }
    children[child_count].pid = pid;
    children[child_count++].ending = ending;
    if (child_most < child_count)
        child_most = child_count;
}

/* In a child: its neighbours, and how the host numbers them, are none of its business. */
static void forget_others(void)
{
    memset(children, 0, child_most * sizeof *children);
    child_count = child_most = 0;
}

static void tell(pid_t pid, int status, const struct rusage *usage)
{
    for (size_t i = 0; i < child_count; i++) {
        if (children[i].pid != pid)
            continue;
        struct ending e;
        ending_from(&e, status, usage);
        (void)!write(children[i].ending, &e, sizeof e); /* init may be gone */
        close(children[i].ending);
        children[i] = children[--child_count];
        return;
    }
}

static void reap(void)
{
    struct signalfd_siginfo info;
    struct rusage usage;
    int status;
    pid_t pid;
    while (read(deaths, &info, sizeof info) > 0)
        continue;
    while ((pid = wait4(-1, &status, WNOHANG, &usage)) > 0)
        tell(pid, status, &usage);
}

/* A child inherits it from the moment of the fork. */
static char usual_victim[16], child_victim[16];

static int know_victim(void)
{
    victim = open("/proc/self/oom_score_adj", O_RDWR | O_CLOEXEC);
    if (victim < 0 || read(victim, usual_victim, sizeof usual_victim - 1) <= 0)
        return -1;
    first_victim(child_victim, usual_victim);
    return 0;
}

/* 1 in the child that became the program. */
static int fork_one(const struct hooks *hooks, uint32_t processes, const int *fds, int count)
{
    if (with_key(SYS_setns, fds[FD_PIDFD], CLONE_NEWPID) < 0) {
        dprintf(2, "zygote: enter pid namespace: %s\n", strerror(errno));
        close_all(fds, (size_t)count);
        return 0;
    }
    hooks->before();
    pid_t pid = pwrite(victim, child_victim, strlen(child_victim), 0) > 0 ? fork() : -1;
    if (pid == 0) {
        enter(processes, fds, count);
        forget_others();
        hooks->child();
        return 1;
    }
    if (pid < 0)
        dprintf(2, "zygote: fork: %s\n", strerror(errno));
    hooks->parent();
    if (pwrite(victim, usual_victim, strlen(usual_victim), 0) < 0)
        dprintf(2, "zygote: oom_score_adj: %s\n", strerror(errno));
    if (pid > 0)
        remember(pid, fds[FD_ENDING]);
    else
        close(fds[FD_ENDING]);
    close_all(fds, FD_ENDING);
    close_all(fds + ZYGOTE_FIXED_FDS, (size_t)(count - ZYGOTE_FIXED_FDS));
    return 0;
}

static int prepare(void)
{
    sigset_t child;
    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    signal(SIGPIPE, SIG_IGN);
    if (filter_read(FILTER_FD, &filter) < 0 || sigprocmask(SIG_BLOCK, &child, NULL) < 0 || know_victim() < 0)
        return -1;
    use_huge_pages();
    deaths = signalfd(-1, &child, SFD_CLOEXEC | SFD_NONBLOCK);
    /* Tell the service that this interpreter is warm. */
    return deaths < 0 || (!in_children && filter_ahead(&filter) < 0) || send(COMMAND_FD, "", 1, MSG_NOSIGNAL) != 1 ? -1 : 0;
}

void zygote_filter_in_children(void)
{
    in_children = 1;
}

void zygote_forget(const char *name)
{
    char *value = getenv(name);
    if (!value)
        return;
    unsetenv(name);
    memset(value - strlen(name) - 1, 0, strlen(name) + 1 + strlen(value));
}

int zygote_serve(const struct hooks *hooks)
{
    if (prepare() < 0)
        return -1;
    for (;;) {
        struct pollfd polled[] = {{COMMAND_FD, POLLIN, 0}, {deaths, POLLIN, 0}};
        if (poll(polled, 2, -1) < 0 && errno != EINTR)
            return -1;
        if (polled[1].revents)
            reap();
        if (!polled[0].revents)
            continue;
        uint32_t processes;
        int fds[ZYGOTE_FDS_MAX];
        int count = receive(&processes, fds);
        if (count < 0)
            _exit(0);
        if (count < ZYGOTE_FIXED_FDS)
            close_all(fds, (size_t)count);
        else if (fork_one(hooks, processes, fds, count))
            return 0;
    }
}

/* The size of the job with its first string, which tells the size of the rest; 0: not known yet. */
static size_t whole(const char *job, size_t size)
{
    const char *end = memchr(job, 0, size);
    return end ? (size_t)(end + 1 - job) + strtoul(job, NULL, 10) : 0;
}

size_t zygote_await(char **job)
{
    size_t size = 0, room = 4096, wanted = 0;
    char *buffer = malloc(room);
    if (!buffer || send(GO_FD, "", 1, MSG_NOSIGNAL) != 1)
        _exit(126);
    while (wanted == 0 || size < wanted) {
        if (size == room && !(buffer = realloc(buffer, room *= 2)))
            _exit(126);
        ssize_t n = read(GO_FD, buffer + size, room - size);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            _exit(n < 0 || size ? 126 : 0);
        size += (size_t)n;
        wanted = whole(buffer, size);
    }
    close(GO_FD);
    size_t head = strlen(buffer) + 1;
    memmove(buffer, buffer + head, size - head);
    *job = buffer;
    return size - head;
}
