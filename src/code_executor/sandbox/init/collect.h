/* Collecting: what the program left under /work/outputs.
 *
 * Everything in the sandbox has been killed before, so nothing changes underneath. All the same
 * each name is opened beneath a descriptor of /work taken before the run, without following links
 * and without crossing mounts, and only a regular file with one name is ever read.
 */
#ifndef CE_COLLECT_H
#define CE_COLLECT_H

#include <stdint.h>

/* Send one FRAME_ENTRY for everything that is not a directory, then FRAME_LISTED. -1: the channel. */
int collect_list(int control, int work);
/* Send the content of `path` (relative to outputs) and FRAME_CONTENT_END. -1: the channel broke. */
int collect_get(int control, int work, const char *path);
/* The same for what a compile step made: `path` relative to /work, EFBIG when above `most`. */
int collect_built(int control, int work, const char *path, uint32_t most);

#endif
