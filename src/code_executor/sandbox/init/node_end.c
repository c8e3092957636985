/* Theory of operation. When Node.js has called exit(), all that a program can notice is over: it has
 * freed its heap, ended its threads and run its exit listeners. What it still does is to destroy
 * the tables of its options and of OpenSSL, piece by piece: a tenth of a short program's time.
 *
 * This library is loaded as a Node-API module before the program's main file, and asks nothing of
 * Node. Its handler is called with the exit status before those registered earlier, which are Node's
 * own; what a program's native modules have registered since has then been run. It does of the rest
 * what others could see: whether the standard streams block, which Node changes and puts back
 * (ResetStdio in src/node.cc), and what stdio has buffered. Then it leaves.
 *
 * A program that has loaded libraries ends the ordinary way, because they may have destructors, which
 * run later. So does one with a terminal, whose modes Node would put back.
 *
 * The kernel's part of an end is as long as the page table is full. Node's start leaves 35 MB of its
 * text and constants there, most of which a program never needs again. So the start's are forgotten
 * when this is loaded, and what is executed ahead after that fetches the program's. Forgotten is only
 * what the file still holds: mappings without a page of their own.
 */
#include <fcntl.h>
#include <link.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { STREAMS = 3 };

static struct {
    int flags; /* -1: closed */
    struct stat file;
} before[STREAMS];
static int libraries;

static int count(struct dl_phdr_info *info, size_t size, void *counted)
{
    (void)info;
    (void)size;
    ++*(int *)counted;
    return 0;
}

static int libraries_now(void)
{
    int counted = 0;
    dl_iterate_phdr(count, &counted);
    return counted;
}

static void restore(int fd)
{
    struct stat now;
    int flags = fcntl(fd, F_GETFL);
    if (before[fd].flags < 0 || flags < 0 || fstat(fd, &now) != 0)
        return;
    if (now.st_dev != before[fd].file.st_dev || now.st_ino != before[fd].file.st_ino)
        return;
    if ((flags ^ before[fd].flags) & O_NONBLOCK)
        fcntl(fd, F_SETFL, flags ^ O_NONBLOCK);
}

static void leave(int status, void *unused)
{
    (void)unused;
    if (libraries_now() != libraries)
        return;
    for (int fd = 0; fd < STREAMS; fd++)
        restore(fd);
    fflush(NULL);
    _exit(status);
}

static void forget_start(void)
{
    char line[8192], mode[5] = "";
    unsigned long start, end, from = 0, to = 0, inode, own;
    int clean = 0;
    FILE *mappings = fopen("/proc/self/smaps", "re");
    if (mappings == NULL)
        return;
    while (fgets(line, sizeof(line), mappings) != NULL) {
        if (sscanf(line, "%lx-%lx %4s %*s %*s %lu", &start, &end, mode, &inode) == 4) {
            from = start;
            to = end;
            clean = inode != 0 && mode[1] == '-' && mode[3] == 'p';
        } else if (sscanf(line, "Anonymous: %lu", &own) == 1 || sscanf(line, "Swap: %lu", &own) == 1)
            clean = clean && own == 0;
        else if (clean && strncmp(line, "VmFlags:", 8) == 0) /* the last line of each */
            madvise((void *)(uintptr_t)from, to - from, MADV_DONTNEED);
    }
    fclose(mappings);
}

void *napi_register_module_v1(void *env, void *exports);

__attribute__((visibility("default"))) void *napi_register_module_v1(void *env, void *exports)
{
    (void)env;
    forget_start();
    for (int fd = 0; fd < STREAMS; fd++) {
        if (isatty(fd))
            return exports;
        before[fd].flags = fstat(fd, &before[fd].file) == 0 ? fcntl(fd, F_GETFL) : -1;
    }
    libraries = libraries_now();
    on_exit(leave, NULL);
    return exports;
}
