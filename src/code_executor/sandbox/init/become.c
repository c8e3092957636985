#include "become.h"

#include "ahead.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/seccomp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

int filter_read(int fd, struct filter *filter)
{
    struct stat about;
    if (fstat(fd, &about) < 0)
        return -1;
    size_t count = (size_t)about.st_size / sizeof(struct sock_filter);
    if (count == 0 || count > BPF_MAXINSNS || about.st_size % (off_t)sizeof(struct sock_filter)) {
        errno = EINVAL;
        return -1;
    }
    filter->rules = malloc((size_t)about.st_size);
    if (!filter->rules)
        return -1;
    if (pread(fd, filter->rules, (size_t)about.st_size, 0) != about.st_size) {
        errno = EIO;
        return -1;
    }
    filter->count = (uint16_t)count;
    return 0;
}

void first_victim(char value[16], const char *init)
{
    enum { USUAL = 500, BEYOND = 300, MOST = 1000 };
    long own = strtol(init, NULL, 10);
    long wanted = own <= USUAL ? USUAL : own + BEYOND < MOST ? own + BEYOND : MOST;
    snprintf(value, 16, "%ld", wanted);
}

static const char *die_first(void)
{
    char init[16] = {0}, value[16];
    int fd = open("/proc/self/oom_score_adj", O_RDWR | O_CLOEXEC);
    if (fd < 0 || read(fd, init, sizeof init - 1) <= 0)
        return "oom_score_adj";
    first_victim(value, init);
    ssize_t n = pwrite(fd, value, strlen(value), 0);
    close(fd);
    return n > 0 ? NULL : "oom_score_adj";
}

/* What is inherited from the service is nobody's choice: every limit is set. */
static const struct {
    int resource;
    rlim_t soft, hard;
} LIMITS[] = {
    {RLIMIT_CORE, 0, 0},
    {RLIMIT_NOFILE, 1024, 4096},
    {RLIMIT_STACK, 8 << 20, 64 << 20},
    {RLIMIT_MEMLOCK, 8 << 20, 8 << 20},
    {RLIMIT_MSGQUEUE, 819200, 819200},
    {RLIMIT_SIGPENDING, 1024, 1024},
    {RLIMIT_NICE, 0, 0},
    {RLIMIT_RTPRIO, 0, 0},
};

static rlim_t at_most(rlim_t wanted, rlim_t most)
{
    return wanted < most ? wanted : most;
}

static const char *set_limits(uint32_t processes)
{
    for (size_t i = 0; i < sizeof LIMITS / sizeof *LIMITS; i++) {
        __rlimit_resource_t resource = (__rlimit_resource_t)LIMITS[i].resource;
        struct rlimit now;
        /* A host may allow the service less than we would give; nobody here may raise that. */
        if (getrlimit(resource, &now) < 0)
            return "rlimit";
        struct rlimit limit = {at_most(LIMITS[i].soft, now.rlim_max),
                               at_most(LIMITS[i].hard, now.rlim_max)};
        /* gVisor lets nobody change some of them; the runtime has set those. */
        if (setrlimit(resource, &limit) < 0 &&
            (now.rlim_cur > limit.rlim_cur || now.rlim_max > limit.rlim_max))
            return "rlimit";
    }
    /* Per (uid, user namespace), and the uid is this run's alone; the pids cgroup bounds it too. */
    struct rlimit limit = {processes, processes};
    if (processes == 0)
        return NULL;
    return setrlimit(RLIMIT_NPROC, &limit) < 0 ? "rlimit nproc" : NULL;
}

static const char *drop_privileges(void)
{
    if (getuid() == PROGRAM_UID)
        return nothing_to_drop() < 0 ? "privileges are left" : NULL;
    for (int cap = 0; cap <= CAP_LAST_CAP; cap++)
        if (with_key(SYS_prctl, PR_CAPBSET_DROP, cap) < 0 && errno != EINVAL)
            return "bounding set";
    if (with_key(SYS_setgroups, 0, 0) < 0)
        return "setgroups";
    if (setresgid(PROGRAM_GID, PROGRAM_GID, PROGRAM_GID) < 0)
        return "setresgid";
    /* Leaving uid 0 with all three ids empties the permitted and effective sets. */
    if (setresuid(PROGRAM_UID, PROGRAM_UID, PROGRAM_UID) < 0)
        return "setresuid";
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct none[2] = {{0, 0, 0}, {0, 0, 0}};
    if (with_key(SYS_capset, (long)&header, (long)none) < 0)
        return "capset";
    /* gVisor knows no ambient set. */
    if (with_key(SYS_prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL) < 0 && errno != EINVAL)
        return "ambient set";
    return NULL;
}


static const char *confine(const struct filter *filter)
{
    const char *failed = die_first();
    if (failed || !filter->rules)
        return failed;
    struct sock_fprog program = {filter->count, filter->rules};
    return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program) < 0 ? "seccomp" : NULL;
}

const char *become_program(uint32_t processes, const struct filter *filter, int keep)
{
    const char *failed;
    if (setsid() < 0 && errno != EPERM)
        return "setsid";
    umask(022);
    if (chdir("/work") < 0)
        return "chdir";
    if ((failed = set_limits(processes)))
        return failed;
    if ((failed = drop_privileges()))
        return failed;
    if (syscall(SYS_close_range, (unsigned)keep + 1, FD_LAST, 0) < 0)
        return "close descriptors";
    /* Changing the uid made the process undumpable, and its /proc/self root's. */
    if (prctl(PR_SET_DUMPABLE, 1, 0, 0, 0) < 0)
        return "dumpable";
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        return "no_new_privs";
    return filter ? confine(filter) : NULL;
}
