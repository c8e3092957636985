/* Theory of operation. To install a filter takes a tenth of a millisecond of each run, and once more
 * when the kernel lets go of it: it compiles the rules, and tries them on every number. A fork
 * inherits a filter for nothing. But the zygote, and a child on its way to become the program, need
 * calls that a program is refused. So the zygote's filter begins with a lock:
 *
 *     one of those calls, of this architecture, whose last register holds the key -> allowed
 *     anything else -> the rules, as every other program has them
 *
 * None of those calls has a sixth argument, so the kernel ignores the register. The key is 64 random
 * bits, new in each zygote. A child wipes it, and the stack and the registers in which it was handed
 * on, before a byte of the program's is read; the kernel shows a filter's rules to nobody in a sandbox. Whoever guessed
 * it could ask for what the kernel then refuses: such a process has no capability.
 */
#include "ahead.h"

#include <errno.h>
#include <linux/audit.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined __x86_64__
#define THIS_ARCHITECTURE AUDIT_ARCH_X86_64
#elif defined __aarch64__
#define THIS_ARCHITECTURE AUDIT_ARCH_AARCH64
#endif

enum { STACK_USED = 4 << 10 };

static uint64_t key;

#define LOAD(offset) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, (uint32_t)(offset))
#define WHERE(field) offsetof(struct seccomp_data, field)
/* Jumps are counted from the next instruction. */
#define IS(value, yes, no) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)(value), yes, no)

/* The key, and what it was copied through: a fork inherits what is in registers. (An older compiler
 * leaves those that nothing in between has overwritten.) */
#if defined __has_attribute
#if __has_attribute(zero_call_used_regs)
#define WIPES_REGISTERS __attribute__((noinline, zero_call_used_regs("all")))
#endif
#endif
#ifndef WIPES_REGISTERS
#define WIPES_REGISTERS __attribute__((noinline))
#endif

static WIPES_REGISTERS int install(const struct filter *filter)
{
    struct sock_filter lock[] = {
        LOAD(WHERE(nr)),
        IS(SYS_setns, 3, 0),
        IS(SYS_prctl, 2, 0),
        IS(SYS_setgroups, 1, 0),
        IS(SYS_capset, 0, 7),
        LOAD(WHERE(args[5])), /* both architectures are little-endian */
        IS(key, 0, 5),
        LOAD(WHERE(args[5]) + 4),
        IS(key >> 32, 0, 3),
        LOAD(WHERE(arch)),
        IS(THIS_ARCHITECTURE, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    size_t head = sizeof lock / sizeof *lock, count = head + filter->count;
    struct sock_filter *rules = malloc(count * sizeof *rules);
    errno = E2BIG;
    if (!rules || count > BPF_MAXINSNS)
        return -1;
    memcpy(rules, lock, sizeof lock);
    memcpy(rules + head, filter->rules, filter->count * sizeof *rules);
    struct sock_fprog program = {(unsigned short)count, rules};
    int result = (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program);
    int saved = errno;
    explicit_bzero(lock, sizeof lock);
    explicit_bzero(rules, count * sizeof *rules);
    free(rules);
    errno = saved;
    return result;
}

WIPES_REGISTERS int filter_ahead(struct filter *filter)
{
    if (getrandom(&key, sizeof key, 0) != (ssize_t)sizeof key)
        return -1;
    int result = install(filter);
    free(filter->rules);
    filter->rules = NULL;
    return result;
}

WIPES_REGISTERS long with_key(long number, long first, long second)
{
    return syscall(number, first, second, 0L, 0L, 0L, key);
}

WIPES_REGISTERS void forget_key(void)
{
    char used[STACK_USED];
    explicit_bzero(&key, sizeof key);
    explicit_bzero(used, sizeof used);
}
