/* A program inside the sandbox: its pipes, its start, its end. */
#ifndef CE_PROGRAM_H
#define CE_PROGRAM_H

#include <stddef.h>
#include <stdint.h>
#include <sys/resource.h>
#include <sys/types.h>

#include "become.h"

/* What the zygote, or init itself for its own child, knows when the program has ended. */
struct ending {
    int32_t status; /* as wait(2) gives it */
    uint32_t pad;
    uint64_t user_us, system_us, maxrss_kb;
};

struct program {
    pid_t pid;      /* 0: forked by a zygote outside, which tells of its end through `ending` */
    int in, out, err; /* init's ends; -1 when closed */
    int held[2];    /* the other ends of out and err as well: their end says nothing that the
                     * program's does not, and would wake init twice for it */
    int go;         /* init's end of the socket of an interpreter started ahead, or -1 */
    int ending;     /* read end of the pipe for struct ending, or -1 */
    const uint8_t *input; /* what it reads; owned by the caller */
    size_t input_left;
};

/* The ends that belong to the program; -1 when handed over. */
struct far_ends {
    int in, out, err, go, ending;
};

void program_none(struct program *p);
/* Make the pipes (and with `warm` the go socket; with `zygote` the ending pipe). Step or NULL. */
const char *program_pipes(struct program *p, struct far_ends *far, int warm, int zygote);
/* The program has its ends: close them here, but for those of its output. */
void far_leave(struct program *p, struct far_ends *far);
/* Fork and exec `argv` with `env` on the far ends. Step or NULL; errno tells why. */
const char *program_exec(struct program *p, struct far_ends *far, char **argv, char **env,
                         uint32_t processes, const struct filter *filter);
/* Close everything that is still open. */
void program_close(struct program *p);
void ending_from(struct ending *e, int status, const struct rusage *usage);

#endif
