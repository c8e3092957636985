#include "signals.h"

#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Programs inherit what is ignored here: of whoever started the service, and of the ground process,
 * which was Python. By the bare call, because libc does not let go of the signals it uses itself. */
void default_signals(void)
{
    struct {
        void *handler;
        unsigned long flags;
        void *restorer;
        uint64_t mask;
    } plain = {0};
    for (int number = 1; number <= 64; number++)
        (void)syscall(SYS_rt_sigaction, number, &plain, NULL, sizeof plain.mask);
}
