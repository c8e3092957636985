/* Theory of operation.
 *
 * The same binary as the launcher, started as PID 1 of a container whose namespaces, mounts, network
 * and cgroup an OCI runtime or a container engine has made:
 *
 *   init --contained [--processes N] [--filter FILE] [--env NAME=VALUE]… [--warm SOURCE PROGRAM ARG…]
 *
 * Frames of the host come in on descriptor 0, init's go out on descriptor 1 (one socket, or two
 * pipes). Both are moved away at once, so that no program inherits them, and init makes itself
 * undumpable, so that none finds them under /proc/1/fd. --warm starts an interpreter ahead with the
 * environment of --env and with nothing of init's own; --filter is BPF as the launcher takes it, for
 * a runtime that installs none of its own; --processes is the program's RLIMIT_NPROC, 0 (the
 * default) where the container's own limit is to be the only one.
 *
 * Two identities, told apart by init's uid:
 *
 *   root of the container, with the capabilities listed in setup.c: the program gets another uid;
 *   PROGRAM_UID already, without any capability (an engine's --user and --cap-drop=ALL): init and
 *   program share it. There is nothing to drop then; become.c checks that there is not. PID 1 has
 *   no handlers, so no signal of the program's reaches it.
 *
 * What the runtime must have mounted: /proc, a writable /work and /tmp (/work owned by PROGRAM_UID).
 */
#include "contained.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "init.h"
#include "signals.h"
#include "state.h"

enum { IN_FD = 3, OUT_FD = 4, FIRST_HIGH = 16 };

struct options {
    struct sandbox box;
    const char *filter;
    size_t env_count;
};

/* Descriptors 0 and 1 become IN_FD and OUT_FD; nothing else stays open but /dev/null. */
static const char *move_channel(void)
{
    int in = fcntl(0, F_DUPFD_CLOEXEC, FIRST_HIGH), out = fcntl(1, F_DUPFD_CLOEXEC, FIRST_HIGH);
    if (in < 0 || out < 0 || dup3(in, IN_FD, O_CLOEXEC) < 0 || dup3(out, OUT_FD, O_CLOEXEC) < 0)
        return "control channel";
    if (syscall(SYS_close_range, OUT_FD + 1U, FD_LAST, 0) < 0)
        return "close descriptors";
    int nothing = open("/dev/null", O_RDWR);
    if (nothing < 0 || dup2(nothing, 0) < 0 || dup2(nothing, 1) < 0 || dup2(nothing, 2) < 0)
        return "/dev/null";
    if (nothing > 2)
        close(nothing);
    return NULL;
}

static const char *parse(int argc, char **argv, struct options *o)
{
    for (int i = 2; i < argc; i++) {
        const char *name = argv[i], *value = i + 1 < argc ? argv[++i] : NULL;
        if (!value)
            return "option without a value";
        if (strcmp(name, "--processes") == 0)
            o->box.processes = (uint32_t)strtoul(value, NULL, 10);
        else if (strcmp(name, "--filter") == 0)
            o->filter = value;
        else if (strcmp(name, "--env") == 0)
            o->box.env[o->env_count++] = argv[i];
        else if (strcmp(name, "--warm") != 0)
            return "unknown option";
        else {
            o->box.warm = WARM_EXEC;
            o->box.source = argv[i];
            o->box.argv = argv + i + 1;
            return o->box.argv[0] ? NULL : "no program";
        }
    }
    return NULL;
}

static const char *read_filter(const char *path, struct filter *filter)
{
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (!path)
        return NULL;
    const char *failed = fd < 0 || filter_read(fd, filter) < 0 ? "filter" : NULL;
    if (fd >= 0)
        close(fd);
    return failed;
}

_Noreturn void contained_main(int argc, char **argv)
{
    struct options o = {.box = {.contained = 1}};
    struct filter filter = {NULL, 0};
    struct init nobody = {.control = OUT_FD};
    default_signals();
    const char *failed = move_channel();
    if (failed)
        _exit(1);
    o.box.env = calloc((size_t)argc + 1, sizeof *o.box.env);
    failed = o.box.env ? parse(argc, argv, &o) : "memory";
    if (!failed)
        failed = read_filter(o.filter, &filter);
    if (failed)
        fail(&nobody, failed);
    init_serve(IN_FD, OUT_FD, &o.box, &filter);
}
