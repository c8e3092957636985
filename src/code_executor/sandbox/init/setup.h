/* Setting the sandbox up from inside: a flat list of named steps, run once by PID 1. */
#ifndef CE_SETUP_H
#define CE_SETUP_H

#include <stddef.h>
#include <stdint.h>

enum { PROCS_MAX = 6 };

struct sandbox {
    uint32_t init_uid, program_uid; /* outside; inside they are 0 and PROGRAM_UID */
    uint32_t processes;             /* RLIMIT_NPROC of the program */
    uint32_t scratch_mb;            /* size of each of /work, /tmp and /dev/shm */
    uint8_t warm;                   /* enum warm */
    uint8_t contained;              /* a container runtime has isolated us (contained.c) */
    int32_t network;                /* the number of a network namespace to use again, or -1 */
    char *source;                   /* created empty before that: some open it at their start */
    char **argv, **env;             /* of the interpreter to start ahead (WARM_EXEC) */
    int zygote;                     /* the command socket of the zygote (WARM_ZYGOTE) */
    int procs[PROCS_MAX];           /* where init, and a zygote's child, joins the run's cgroups */
    size_t proc_count;
};

enum warm {
    WARM_NONE = 0,   /* a program is exec'ed when the job comes */
    WARM_EXEC = 1,   /* init starts an interpreter ahead, which waits for the job */
    WARM_ZYGOTE = 2, /* a zygote outside forks the interpreter into this sandbox */
};

/* Once, where a /proc like the sandboxes' is mounted, before the first of them. */
void setup_survey(void);

/* NULL, or the name of the step that failed, with errno. */
const char *setup_sandbox(const struct sandbox *sandbox);

#endif
