/* Becoming the program: the last steps before untrusted code runs in a process.
 *
 * Used by init for a program that it starts and by the zygote's library for a forked interpreter,
 * so that both drop exactly the same things in the same order.
 */
#ifndef CE_BECOME_H
#define CE_BECOME_H

#include <linux/filter.h>
#include <stdint.h>
#include <sys/types.h>

enum {
    PROGRAM_UID = 1000, /* inside the sandbox's user namespace */
    PROGRAM_GID = 1000,
    FD_LAST = 0x7fffffff, /* for close_range(2): gVisor takes no higher one */
};

struct filter {
    struct sock_filter *rules; /* NULL: no filter (a backend whose engine installs it) */
    uint16_t count;
};

/* Read a BPF program from `fd`; -1 with errno. */
int filter_read(int fd, struct filter *filter);

/* 0 when this process has no capability and no group but PROGRAM_GID, and can get none: where init
 * is PROGRAM_UID itself, nobody in the sandbox could drop any. -1 with errno otherwise. */
int nothing_to_drop(void);

/* Make files as the program's user, with its permissions only, and as ourselves again. */
void act_as_program(void);
void act_as_init(void);

/* Session, signals, directory, limits, identity, capabilities, then confine(): in this order.
 *
 * `processes` 0 leaves RLIMIT_NPROC alone. `keep` is the highest descriptor to keep open. A NULL `filter`: this process has inherited
 * what confine() does (ahead.h). Returns NULL, or the name of the step that failed, with errno; the caller must then end the process. */
const char *become_program(uint32_t processes, const struct filter *filter, int keep);

/* The kernel's choice of a victim when memory ends: a program before init, and before anything of
 * the host. What its /proc/self/oom_score_adj is to hold, by what init's holds. */
void first_victim(char value[16], const char *init);

#endif
