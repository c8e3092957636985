/* Theory of operation. A fork copies one entry of the page table for each huge page instead of 512,
 * the end of the child lets go of one, and a child takes no exception for what it only reads.
 * What a child writes to is still copied by the 4 KiB.
 *
 * Anonymous memory is collapsed where it lies. The text of a file cannot be (most kernels are built
 * without it), and it is not in the child's page table at all after a fork, so each child would
 * fetch it by some sixty exceptions and drop it again at its end. So whole huge pages of it, with
 * the constants before and after, are copied into memory of our own, which takes the place of the
 * mapping in one step. The copy is never writable and executable at once.
 *
 * Whatever fails leaves things as they are: a kernel before 6.1 or without huge pages, none free, a
 * security module that does not want it.
 */
#include "hugepages.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25 /* Linux 6.1 */
#endif

#define HUGE ((uintptr_t)2 << 20)
enum { PAGE = 4096 };

/* A line of /proc/self/maps, or several that continue each other. */
struct mapping {
    uintptr_t start, end, offset;
    unsigned long file;
    int executable;
    char mode[5];
};

static uintptr_t up(uintptr_t address)
{
    return (address + HUGE - 1) & ~(HUGE - 1);
}

static int collapse(uintptr_t start, uintptr_t end)
{
    int collapsed = 0;
    for (start = up(start); start + HUGE <= end; start += HUGE)
        if (madvise((void *)start, HUGE, MADV_COLLAPSE) == 0)
            collapsed++;
        else if (errno == EINVAL)
            break;
    return collapsed;
}

/* Copy what lies from start to end, whole huge pages, and put the copy in its place. */
static void replace(uintptr_t start, uintptr_t end)
{
    size_t size = end - start;
    void *room = mmap(NULL, size + HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (room == MAP_FAILED)
        return;
    uintptr_t from = (uintptr_t)room, copy = up(from);
    memcpy((void *)copy, (void *)start, size);
    if ((size_t)collapse(copy, copy + size) != size / HUGE ||
        mprotect((void *)copy, size, PROT_READ | PROT_EXEC) < 0 ||
        mremap((void *)copy, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, (void *)start) == MAP_FAILED)
        munmap((void *)copy, size);
    if (copy > from)
        munmap(room, copy - from);
    if (copy < from + HUGE)
        munmap((void *)(copy + size), from + HUGE - copy);
}

/* Whether this process has looked at a good part of the huge page at start: a mathematical library
 * brings 20 MB of text, most of it for other processors. */
static int is_used(int pagemap, uintptr_t start)
{
    uint64_t pages[HUGE / PAGE];
    size_t present = 0;
    if (pread(pagemap, pages, sizeof pages, (off_t)(start / PAGE * sizeof *pages)) !=
        (ssize_t)sizeof pages)
        return 0;
    for (size_t i = 0; i < HUGE / PAGE; i++)
        present += pages[i] >> 63;
    return present >= HUGE / PAGE / 4;
}

/* What is used between start and end, in as few pieces as can be. */
static void replace_used(uintptr_t start, uintptr_t end)
{
    int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    uintptr_t from = up(start), to = from;
    for (; to + HUGE <= end; to += HUGE) {
        if (is_used(pagemap, to))
            continue;
        if (from < to)
            replace(from, to);
        from = to + HUGE;
    }
    if (from < to)
        replace(from, to);
    if (pagemap >= 0)
        close(pagemap);
}

static int read_only(const struct mapping *m)
{
    return m->file && m->mode[0] == 'r' && m->mode[1] == '-' && m->mode[3] == 'p';
}

static int continues(const struct mapping *m, const struct mapping *before)
{
    return read_only(m) && read_only(before) && m->file == before->file &&
           m->start == before->end && m->offset == before->offset + (before->end - before->start);
}

static void treat(const struct mapping *m)
{
    if (m->file == 0 && strcmp(m->mode, "rw-p") == 0)
        collapse(m->start, m->end);
    if (!read_only(m) || !m->executable)
        return;
    /* One mapping instead of three or so for a library: a fork copies each. */
    (void)mprotect((void *)m->start, m->end - m->start, PROT_READ | PROT_EXEC);
    replace_used(m->start, m->end);
}

void use_huge_pages(void)
{
    FILE *maps = fopen("/proc/self/maps", "re");
    char line[512];
    struct mapping m = {0}, all = {0};
    while (maps && fgets(line, sizeof line, maps)) {
        if (sscanf(line, "%lx-%lx %4s %lx %*s %lu", &m.start, &m.end, m.mode, &m.offset, &m.file) != 5)
            continue;
        m.executable = m.mode[2] == 'x';
        if (continues(&m, &all)) {
            all.end = m.end;
            all.executable |= m.executable;
            continue;
        }
        treat(&all);
        all = m;
    }
    treat(&all);
    if (maps)
        fclose(maps);
}
