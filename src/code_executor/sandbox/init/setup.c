#include "setup.h"

#include <errno.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/securebits.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "become.h"

/* What init still needs: to read any file of the sandbox, to end any process of it, to become
 * the program. All of it counts inside this user namespace only. */
static const uint32_t KEPT = 1U << CAP_DAC_OVERRIDE | 1U << CAP_DAC_READ_SEARCH | 1U << CAP_KILL |
                             1U << CAP_SETGID | 1U << CAP_SETUID | 1U << CAP_SETPCAP;

static int own_session(const struct sandbox *sandbox)
{
    (void)sandbox;
    return setsid() < 0 && errno != EPERM ? -1 : 0; /* a runtime may have done it */
}

/* A process that puts itself in, by "0", which is alone in its group ("tasks" of cgroup v1), takes
 * no lock. The lock for all else waits for each processor first: up to 30 ms on an idle host. */
static int join_cgroups(const struct sandbox *sandbox)
{
    for (size_t i = 0; i < sandbox->proc_count; i++) {
        if (write(sandbox->procs[i], "0", 1) != 1)
            return -1;
        if (sandbox->warm != WARM_ZYGOTE)
            close(sandbox->procs[i]);
    }
    return 0;
}

static int become_root_inside(const struct sandbox *sandbox)
{
    (void)sandbox;
    if (setgroups(0, NULL) < 0 || setresgid(0, 0, 0) < 0)
        return -1;
    return setresuid(0, 0, 0);
}

static int die_with_launcher(const struct sandbox *sandbox)
{
    (void)sandbox;
    return prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
}

/* The program runs under another uid; this keeps even a shared one out of PID 1. */
static int hide_memory(const struct sandbox *sandbox)
{
    (void)sandbox;
    return prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
}

/* After we joined the run's cgroup, so that it is this namespace's root. */
static int cgroup_namespace(const struct sandbox *sandbox)
{
    (void)sandbox;
    return unshare(CLONE_NEWCGROUP);
}

static int host_name(const struct sandbox *sandbox)
{
    (void)sandbox;
    return sethostname("sandbox", 7);
}

static int mount_proc(const struct sandbox *sandbox)
{
    (void)sandbox;
    return mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, "hidepid=invisible");
}

/* What /proc tells of the whole kernel, and what covers it; a module may bring some of it later. */
#define FILE_OF_NOTHING "/opt/ahead/nothing"
#define EMPTY_DIRECTORY "/opt/ahead/empty"
static struct {
    const char *path, *cover;
    int needless;
} masks[] = {
    {"/proc/acpi", EMPTY_DIRECTORY, 0},         {"/proc/scsi", EMPTY_DIRECTORY, 0},
    {"/proc/asound", EMPTY_DIRECTORY, 0},       {"/proc/kcore", FILE_OF_NOTHING, 0},
    {"/proc/keys", FILE_OF_NOTHING, 0},         {"/proc/key-users", FILE_OF_NOTHING, 0},
    {"/proc/timer_list", FILE_OF_NOTHING, 0},   {"/proc/sysrq-trigger", FILE_OF_NOTHING, 0},
    {"/proc/kallsyms", FILE_OF_NOTHING, 0},     {"/proc/interrupts", FILE_OF_NOTHING, 0},
    {"/proc/latency_stats", FILE_OF_NOTHING, 0}, {"/proc/sched_debug", FILE_OF_NOTHING, 0},
};
enum { MASKS = sizeof masks / sizeof *masks };

/* What only its owner may open needs no mask: that is the host's root, who has no number in a
 * sandbox's user namespace. */
void setup_survey(void)
{
    struct stat about;
    for (size_t i = 0; i < MASKS; i++)
        masks[i].needless = stat(masks[i].path, &about) == 0 && S_ISREG(about.st_mode) &&
                            !(about.st_mode & (S_IRWXG | S_IRWXO));
}

static int mask_proc(const struct sandbox *sandbox)
{
    (void)sandbox;
    for (size_t i = 0; i < MASKS; i++)
        if (!masks[i].needless &&
            mount(masks[i].cover, masks[i].path, NULL, MS_BIND, NULL) < 0 && errno != ENOENT)
            return -1;
    return 0;
}

static int mount_scratch(const char *where, unsigned long flags, const char *mode, uint32_t mb)
{
    char options[128];
    snprintf(options, sizeof options, "size=%um,nr_inodes=65536,uid=%d,gid=%d,mode=%s", mb,
             PROGRAM_UID, PROGRAM_GID, mode);
    return mount("tmpfs", where, "tmpfs", MS_NOSUID | MS_NODEV | flags, options);
}

static int mount_work(const struct sandbox *sandbox)
{
    return mount_scratch("/work", 0, "0755", sandbox->scratch_mb);
}

static int mount_tmp(const struct sandbox *sandbox)
{
    return mount_scratch("/tmp", 0, "1777", sandbox->scratch_mb);
}

static int mount_shm(const struct sandbox *sandbox)
{
    return mount_scratch("/dev/shm", MS_NOEXEC, "1777", sandbox->scratch_mb);
}

static int make_outputs(const struct sandbox *sandbox)
{
    (void)sandbox;
    if (mkdir("/work/outputs", 0755) < 0 && errno != EEXIST)
        return -1;
    return chown("/work/outputs", PROGRAM_UID, PROGRAM_GID);
}

/* Init executes nothing as itself. If it ever did: root's number gives no capabilities then, so
 * that one call does what emptying its bounding set of 35 would (the program's own is emptied). */
static int nothing_by_exec(const struct sandbox *sandbox)
{
    (void)sandbox;
    return prctl(PR_SET_SECUREBITS, SECBIT_NOROOT | SECBIT_NOROOT_LOCKED, 0, 0, 0);
}

static int small_bounding_set(const struct sandbox *sandbox)
{
    (void)sandbox;
    for (int cap = 0; cap <= CAP_LAST_CAP && geteuid() != PROGRAM_UID; cap++)
        if ((cap > 31 || !(KEPT & 1U << cap)) && prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) < 0 &&
            errno != EINVAL)
            return -1;
    return 0;
}

static int keep_few_capabilities(const struct sandbox *sandbox)
{
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2] = {{KEPT, KEPT, 0}, {0, 0, 0}};
    (void)sandbox;
    if (geteuid() == PROGRAM_UID)
        return nothing_to_drop();
    return (int)syscall(SYS_capset, &header, data);
}

static int no_new_privileges(const struct sandbox *sandbox)
{
    (void)sandbox;
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
}

struct step {
    const char *name;
    int (*run)(const struct sandbox *sandbox);
};

static const struct step STEPS[] = {
    {"join cgroups", join_cgroups},
    {"root inside", become_root_inside},
    {"die with launcher", die_with_launcher},
    {"hide memory", hide_memory},
    {"cgroup namespace", cgroup_namespace},
    {"host name", host_name},
    {"mount /proc", mount_proc},
    {"mask /proc", mask_proc},
    {"mount /work", mount_work},
    {"mount /tmp", mount_tmp},
    {"mount /dev/shm", mount_shm},
    {"make outputs", make_outputs},
    {"nothing by exec", nothing_by_exec},
    {"keep few capabilities", keep_few_capabilities},
    {"no new privileges", no_new_privileges},
    {NULL, NULL},
};

/* The runtime has done the rest. */
static const struct step CONTAINED_STEPS[] = {
    {"own session", own_session},
    {"hide memory", hide_memory},
    {"make outputs", make_outputs},
    {"small bounding set", small_bounding_set},
    {"keep few capabilities", keep_few_capabilities},
    {"no new privileges", no_new_privileges},
    {NULL, NULL},
};

const char *setup_sandbox(const struct sandbox *sandbox)
{
    for (const struct step *step = sandbox->contained ? CONTAINED_STEPS : STEPS; step->name; step++)
        if (step->run(sandbox) < 0)
            return step->name;
    return NULL;
}
