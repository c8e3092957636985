#include <errno.h>
#include <linux/capability.h>
#include <sys/fsuid.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "become.h"

int nothing_to_drop(void)
{
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct has[2] = {{0, 0, 0}, {0, 0, 0}};
    gid_t groups[64];
    int count = getgroups(64, groups);
    if (count < 0 || syscall(SYS_capget, &header, has) < 0)
        return -1;
    errno = EPERM;
    if (getuid() != PROGRAM_UID || getgid() != PROGRAM_GID || getegid() != PROGRAM_GID)
        return -1;
    for (int i = 0; i < count; i++)
        if (groups[i] != PROGRAM_GID)
            return -1;
    for (int i = 0; i < 2; i++)
        if (has[i].effective | has[i].permitted | has[i].inheritable)
            return -1;
    for (int cap = 0; cap <= CAP_LAST_CAP; cap++)
        if (prctl(PR_CAPBSET_READ, cap, 0, 0, 0) == 1)
            return -1;
    return 0;
}

/* gVisor has no setfsuid(2): there the effective ids are changed, which implies those. */
static void act_as(uid_t uid, gid_t gid)
{
    if (uid == 0)
        setfsuid(0);
    setfsgid(gid);
    setfsuid(uid);
    if ((uid_t)setfsuid((uid_t)-1) == uid && (gid_t)setfsgid((gid_t)-1) == gid)
        return;
    if (uid == 0)
        (void)!setresuid((uid_t)-1, 0, (uid_t)-1);
    (void)!setresgid((gid_t)-1, gid, (gid_t)-1);
    (void)!setresuid((uid_t)-1, uid, (uid_t)-1);
}

void act_as_program(void)
{
    act_as(PROGRAM_UID, PROGRAM_GID);
}

void act_as_init(void)
{
    if (getuid() != PROGRAM_UID)
        act_as(0, 0);
}
