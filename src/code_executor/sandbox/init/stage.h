/* Staging: the files that are in /work before the program starts. */
#ifndef CE_STAGE_H
#define CE_STAGE_H

#include <stddef.h>
#include <sys/types.h>

/* Create `path` (relative to /work) with its parents, empty, as the program's own file of `mode`.
 * Returns a descriptor, or -1 with errno; a path that is absolute or has `..` is EINVAL. */
int stage_open(const char *path, mode_t mode);

#endif
