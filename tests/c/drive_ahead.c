/* Whether a child that has forgotten the key of its filter (ahead.h) has it in a register. Prints which
 * of the key's halves is found there, and whether the key itself is left. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "ahead.c" /* its key */

enum { VECTORS = 16, VECTOR = 16 };

struct registers {
    unsigned char vector[VECTORS][VECTOR];
    uint64_t last; /* of the six for arguments */
};

#define SAVE(n) __asm__ volatile("movups %%xmm" #n ",%0" : "=m"(r->vector[n]))

static void save(struct registers *r)
{
    __asm__ volatile("mov %%r9,%0" : "=m"(r->last));
    SAVE(0); SAVE(1); SAVE(2); SAVE(3); SAVE(4); SAVE(5); SAVE(6); SAVE(7);
    SAVE(8); SAVE(9); SAVE(10); SAVE(11); SAVE(12); SAVE(13); SAVE(14); SAVE(15);
}

static int holds(const struct registers *r, uint32_t half)
{
    for (size_t at = 0; at + sizeof half <= sizeof *r; at++)
        if (memcmp((const char *)r + at, &half, sizeof half) == 0)
            return 1;
    return 0;
}

int main(void)
{
    struct filter filter = {calloc(1, sizeof *filter.rules), 1};
    struct registers inside;
    memset(&inside, 0, sizeof inside);
    filter.rules[0] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, 0x7fff0000); /* allow */
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 || filter_ahead(&filter) < 0)
        return 1;
    uint64_t turned = ~key; /* the key itself is not to be loaded here */
    pid_t pid = fork();
    if (pid == 0) {
        (void)with_key(SYS_prctl, PR_GET_NO_NEW_PRIVS, 0);
        forget_key();
        save(&inside);
        printf("%d %d %d\n", holds(&inside, (uint32_t)~turned), holds(&inside, (uint32_t)(~turned >> 32)), key != 0);
        fflush(stdout);
        _exit(0);
    }
    return waitpid(pid, NULL, 0) == pid ? 0 : 1;
}
