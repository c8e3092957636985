/* A warm interpreter that forks into sandboxes: the part that knows no interpreter. */
#ifndef CE_ZYGOTE_H
#define CE_ZYGOTE_H

#include <stddef.h>

#include "setup.h"

/* A request to fork: the RLIMIT_NPROC (uint32_t), and with it as descriptors init's pidfd, the
 * program's standard streams, its go socket, the pipe on which init learns of its end, and where
 * the child joins the run's cgroups. */
enum { ZYGOTE_FIXED_FDS = 6, ZYGOTE_FDS_MAX = ZYGOTE_FIXED_FDS + PROCS_MAX };

/* What the interpreter wants to have called around a fork. */
struct hooks {
    void (*before)(void);
    void (*parent)(void);
    void (*child)(void);
};

/* Serve until the service is gone (then the process ends); returns 0 in a child, -1 on failure. */
int zygote_serve(const struct hooks *hooks);
/* Have each child install the filter, which may refuse what a zygote needs (ahead.h). */
void zygote_filter_in_children(void);
/* Say that the program's interpreter waits, and read its job (job.c).
 * Returns the size of what follows the size, in a malloc'ed buffer; ends the process when there is no job. */
size_t zygote_await(char **job);
/* Remove a variable of our own, also from the memory that /proc/self/environ shows. */
void zygote_forget(const char *name);

#endif
