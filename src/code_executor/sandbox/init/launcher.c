/* Theory of operation.
 *
 * The launcher is a small process that lives in the mount namespace whose root is the sandboxes'
 * root (assembled by launcher.py, which then executes this). It serves one client, the service,
 * over a SOCK_SEQPACKET socket: one request, one answer, in order.
 *
 *   'S'  enter the sandbox's network namespace (network.h), clone its PID 1 into fresh ones of all
 *        other kinds, write its id maps, let it go. With the request come init's end of the
 *        control channel, then what init joins the run's cgroups with, then the command socket of
 *        the zygote that is to fork into it (init asks, and lets go of it); it names the network
 *        namespace to use again. The answer names the one taken and carries a pidfd. The
 *        service waits for what init says, not for it: after a refusal the control channel ends.
 *   'Z'  fork and exec a zygote, which sees the same root. The answer carries a pidfd.
 *
 * A clone of this small static program is cheap, which is why it is not the service that clones.
 * It knows no secret: its environment is empty, and its descriptors are the socket, the filter
 * and /dev/null. When the service dies the socket ends, the launcher exits, and with it (by
 * PR_SET_PDEATHSIG) every sandbox and zygote.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <linux/securebits.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "become.h"
#include "contained.h"
#include "init.h"
#include "network.h"
#include "proto.h"
#include "signals.h"

enum { COMMAND_FD = 3, FILTER_FD = 4, CHILD_FDS = 5, REQUEST_MAX = 128 * 1024, FDS_MAX = PROCS_MAX + 2, STRINGS_MAX = 1024 };

/* The descriptors of a request for a sandbox. */
enum { CONTROL = 0, FIRST_PROCS = 1 };

struct request {
    uint8_t *bytes;
    struct cursor cursor;
    int fds[FDS_MAX];
    size_t fd_count;
};

struct answer {
    int32_t error; /* errno, or 0 */
    int32_t pid;
    int32_t network; /* the number of the network namespace */
    char step[32];   /* the step that failed */
    int fds[1];      /* the caller's, closed after the answer is sent */
    size_t fd_count;
};

static int die_with_service(void)
{
    return prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
}

static void close_all(int *fds, size_t count)
{
    for (size_t i = 0; i < count; i++)
        close(fds[i]);
}

/* ── one request in, one answer out ───────────────────────────────────────────────────────── */

static void take_fds(struct request *r, struct msghdr *message)
{
    for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c; c = CMSG_NXTHDR(message, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
            continue;
        size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        if (count > FDS_MAX)
            count = FDS_MAX;
        memcpy(r->fds, CMSG_DATA(c), count * sizeof(int));
        r->fd_count = count;
    }
}

/* 1: a request; 0: the service is gone. */
static int receive(struct request *r)
{
    union {
        char space[CMSG_SPACE(FDS_MAX * sizeof(int))];
        struct cmsghdr align;
    } control;
    struct iovec part = {r->bytes, REQUEST_MAX};
    struct msghdr message = {
        .msg_iov = &part,
        .msg_iovlen = 1,
        .msg_control = control.space,
        .msg_controllen = sizeof control.space,
    };
    ssize_t n;
    do
        n = recvmsg(COMMAND_FD, &message, MSG_CMSG_CLOEXEC);
    while (n < 0 && errno == EINTR);
    if (n <= 0)
        return 0;
    r->fd_count = 0;
    take_fds(r, &message);
    /* Without room for all descriptors the kernel drops the last: a limit would be missing. */
    int cut = (message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0;
    r->cursor = (struct cursor){r->bytes, (size_t)n, cut};
    return 1;
}

static void reply(struct answer *a)
{
    union {
        char space[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control;
    struct iovec part = {a, offsetof(struct answer, fds)};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    memset(&control, 0, sizeof control);
    if (a->fd_count) {
        message.msg_control = control.space;
        message.msg_controllen = CMSG_SPACE(a->fd_count * sizeof(int));
        struct cmsghdr *c = CMSG_FIRSTHDR(&message);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(a->fd_count * sizeof(int));
        memcpy(CMSG_DATA(c), a->fds, a->fd_count * sizeof(int));
    }
    if (sendmsg(COMMAND_FD, &message, MSG_NOSIGNAL) < 0)
        exit(0);
    close_all(a->fds, a->fd_count);
}

static void refuse(struct answer *a, const char *step)
{
    a->error = errno ? errno : EIO;
    snprintf(a->step, sizeof a->step, "%s", step);
}

/* ── a sandbox ────────────────────────────────────────────────────────────────────────────── */

static int write_file(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    ssize_t n = write(fd, text, strlen(text));
    int saved = errno;
    close(fd);
    errno = saved;
    return n == (ssize_t)strlen(text) ? 0 : -1;
}

static int write_map(pid_t pid, const char *name, const struct sandbox *box)
{
    char path[64], map[96];
    snprintf(path, sizeof path, "/proc/%d/%s", pid, name);
    snprintf(map, sizeof map, "0 %u 1\n%d %u 1\n", box->init_uid, PROGRAM_UID, box->program_uid);
    return write_file(path, map);
}

/* What init joins its cgroups and asks the zygote with, moved to CHILD_FDS and after; the first
 * descriptor behind it. */
static unsigned keep_for_init(struct sandbox *box, const int *fds)
{
    size_t count = box->proc_count + (size_t)(box->warm == WARM_ZYGOTE);
    int high[FDS_MAX], kept = CHILD_FDS;
    for (size_t i = 0; i < count; i++)
        high[i] = fcntl(fds[i], F_DUPFD_CLOEXEC, 32);
    for (size_t i = 0; i < count; i++, kept++) {
        if (dup3(high[i], kept, O_CLOEXEC) < 0)
            _exit(1);
        *(i < box->proc_count ? &box->procs[i] : &box->zygote) = kept;
    }
    return (unsigned)kept;
}

static _Noreturn void sandbox_child(int gate, const struct request *r, struct sandbox *box,
                                    const struct filter *filter)
{
    uint8_t go;
    struct sigaction plain = {.sa_handler = SIG_DFL};
    if (sigaction(SIGCHLD, &plain, NULL) < 0 || dup3(0, 1, 0) < 0 || dup3(0, 2, 0) < 0 || dup3(r->fds[CONTROL], 3, O_CLOEXEC) < 0 ||
        dup3(gate, 4, O_CLOEXEC) < 0 ||
        syscall(SYS_close_range, keep_for_init(box, r->fds + FIRST_PROCS), FD_LAST, 0) < 0)
        _exit(1);
    if (read(4, &go, 1) != 1)
        _exit(1);
    close(4);
    init_serve(3, 3, box, filter);
}

/* The kernel charges message queues, pending signals and locked memory of a user namespace to the
 * user who made it as well: with one maker for all, one run would use them up for everybody. */
static pid_t clone_sandbox(uid_t maker, int *pidfd)
{
    struct clone_args args = {
        .flags = CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS |
                 CLONE_PIDFD,
        .pidfd = (uint64_t)(uintptr_t)pidfd,
        .exit_signal = SIGCHLD,
    };
    if (setresuid((uid_t)-1, maker, (uid_t)-1) < 0)
        return -1;
    pid_t pid = (pid_t)syscall(SYS_clone3, &args, sizeof args);
    int saved = errno;
    /* Changing the user has made the kernel forget PR_SET_PDEATHSIG. */
    if (pid != 0 && (setresuid((uid_t)-1, 0, (uid_t)-1) < 0 || die_with_service() < 0))
        exit(1);
    errno = saved;
    return pid;
}

static const char *admit(pid_t pid, const struct sandbox *box, int gate)
{
    if (write_map(pid, "uid_map", box) < 0)
        return "uid map";
    if (write_map(pid, "gid_map", box) < 0)
        return "gid map";
    return write(gate, "", 1) == 1 ? NULL : "gate";
}

/* The step that failed, or NULL. */
static const char *launch(struct request *r, struct sandbox *box, const struct filter *filter,
                          struct answer *a)
{
    int gate[2], pidfd = -1;
    if (pipe2(gate, O_CLOEXEC) < 0)
        return "gate";
    a->pid = clone_sandbox(box->init_uid, &pidfd);
    if (a->pid == 0)
        sandbox_child(gate[0], r, box, filter);
    close(gate[0]);
    if (a->pid > 0)
        a->fds[a->fd_count++] = pidfd;
    const char *failed = a->pid < 0 ? "clone" : admit(a->pid, box, gate[1]);
    int saved = errno;
    close(gate[1]); /* a child still waiting for the gate ends here */
    errno = saved;
    return failed;
}

static void launch_networked(struct request *r, struct sandbox *box, const struct filter *filter,
                             struct answer *a)
{
    if (network_enter(box->network, &a->network) < 0) {
        refuse(a, "network namespace");
        return;
    }
    const char *failed = launch(r, box, filter, a);
    if (!failed)
        return;
    refuse(a, failed);
    if (a->network != box->network)
        network_forget(a->network); /* a refusal tells no number */
}

static void on_sandbox(struct request *r, const struct filter *filter, struct answer *a)
{
    struct cursor *c = &r->cursor;
    struct sandbox box = {.warm = take_u8(c)};
    box.network = (int32_t)take_u32(c);
    box.init_uid = take_u32(c);
    box.program_uid = take_u32(c);
    box.processes = take_u32(c);
    box.scratch_mb = take_u32(c);
    box.source = take_string(c);
    box.argv = take_strings(c, STRINGS_MAX);
    box.env = take_strings(c, STRINGS_MAX);
    errno = EPROTO;
    size_t others = FIRST_PROCS + (size_t)(box.warm == WARM_ZYGOTE);
    box.proc_count = r->fd_count - others;
    if (c->bad || c->left || box.warm > WARM_ZYGOTE || (box.warm == WARM_EXEC && !box.argv[0]) ||
        r->fd_count < others || box.proc_count > PROCS_MAX)
        refuse(a, "request");
    else
        launch_networked(r, &box, filter, a);
    free(box.source);
    free_strings(box.argv);
    free_strings(box.env);
}

/* ── a zygote ─────────────────────────────────────────────────────────────────────────────── */

/* What it loads may want to write (a font cache): a /work that it leaves behind with its children. */
static int own_work(void)
{
    if (unshare(CLONE_NEWNS) < 0 ||
        mount("tmpfs", "/work", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "size=64m") < 0)
        return -1;
    return chdir("/work");
}

/* fds of the request: its command socket, standard input, output, error. */
static _Noreturn void zygote_child(const struct request *r, char **argv, char **env)
{
    int high[4];
    for (int i = 0; i < 4; i++)
        high[i] = fcntl(r->fds[i], F_DUPFD_CLOEXEC, 32);
    if (dup3(high[0], COMMAND_FD, 0) < 0 || dup2(high[1], 0) < 0 || dup2(high[2], 1) < 0 ||
        dup2(high[3], 2) < 0 || dup3(FILTER_FD, 31, 0) < 0 || dup3(31, FILTER_FD, 0) < 0)
        _exit(126);
    syscall(SYS_close_range, 5U, FD_LAST, 0);
    /* Its fds 3 and 4 are the command socket and the filter; launcher.c's own ones are gone. */
    if (prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) < 0 || setsid() < 0 || own_work() < 0)
        _exit(126);
    execve(argv[0], argv, env);
    fprintf(stderr, "exec %s: %s\n", argv[0], strerror(errno));
    _exit(127);
}

static void on_zygote(struct request *r, struct answer *a)
{
    struct cursor *c = &r->cursor;
    char **argv = take_strings(c, STRINGS_MAX);
    char **env = take_strings(c, STRINGS_MAX);
    errno = EPROTO;
    if (c->bad || c->left || r->fd_count != 4 || !argv[0]) {
        refuse(a, "request");
    } else {
        a->pid = fork();
        if (a->pid == 0)
            zygote_child(r, argv, env);
        a->fds[0] = a->pid < 0 ? -1 : (int)syscall(SYS_pidfd_open, a->pid, 0);
        if (a->fds[0] < 0)
            refuse(a, "fork zygote");
        else
            a->fd_count = 1;
    }
    free_strings(argv);
    free_strings(env);
}

/* Whoever started the service may have shielded it from the kernel's out-of-memory killer, and a
 * process may always return to the lowest value that a privileged one gave it: no sandbox is to
 * have a shield. (Without root this writes the value only.) */
static int drop_oom_shield(void)
{
    char text[16] = {0};
    int fd = open("/proc/self/oom_score_adj", O_RDWR | O_CLOEXEC);
    if (fd < 0 || read(fd, text, sizeof text - 1) <= 0)
        return -1;
    long value = strtol(text, NULL, 10);
    int written = dprintf(fd, "%ld", value < 0 ? 0 : value);
    close(fd);
    return written < 0 ? -1 : 0;
}

/* ── the process ──────────────────────────────────────────────────────────────────────────── */

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "--contained") == 0)
        contained_main(argc, argv);
    struct filter filter = {NULL, 0};
    struct request r = {.bytes = malloc(REQUEST_MAX)};
    /* Children are watched through their pidfds and channels; nobody waits for them here. */
    struct sigaction ignore = {.sa_handler = SIG_DFL, .sa_flags = SA_NOCLDWAIT};
    default_signals();
    /* One session for the inits of all sandboxes, without a terminal: the kernel's scheduler makes a
     * group of its own for each new session, and that costs. A program has its own. */
    if (setsid() < 0 && errno != EPERM)
        return 1;
    /* What a zygote has forked comes here when that dies, and ends at once: where the first process
     * of the host is slow to wait for what it inherits, or does not, its group would not empty. */
    if (prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) < 0)
        return 1;
    /* With it the capabilities outlast the changes of user in clone_sandbox(). */
    if (die_with_service() < 0 || prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP, 0, 0, 0) < 0)
        return 1;
    if (drop_oom_shield() < 0 || !r.bytes || filter_read(FILTER_FD, &filter) < 0 ||
        sigaction(SIGCHLD, &ignore, NULL) < 0)
        return 1;
    setup_survey();
    while (receive(&r)) {
        struct answer a = {0};
        uint8_t op = take_u8(&r.cursor);
        errno = EPROTO;
        if (op == 'S')
            on_sandbox(&r, &filter, &a);
        else if (op == 'Z')
            on_zygote(&r, &a);
        else
            refuse(&a, "request");
        close_all(r.fds, r.fd_count);
        reply(&a);
    }
    return 0;
}
