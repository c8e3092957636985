#include "collect.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "proto.h"

enum {
    DEPTH_MAX = 32,
    ENTRIES_MAX = 1000, /* reported; the host returns far fewer */
    VISITED_MAX = 20000,
    PATH_LONGEST = 1024,
};

struct walk {
    int control;
    char path[PATH_LONGEST + 1];
    size_t length;
    uint32_t entries, visited;
    int truncated, broken;
};

/* O_DIRECTORY makes gVisor follow a link in spite of O_NOFOLLOW: what was opened is looked at. */
static int open_one(int dir, const char *name, int flags)
{
    struct stat about;
    int fd = openat(dir, name, (flags & ~O_DIRECTORY) | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0 || !(flags & O_DIRECTORY))
        return fd;
    if (fstat(fd, &about) == 0 && S_ISDIR(about.st_mode))
        return fd;
    close(fd);
    errno = ENOTDIR;
    return -1;
}

/* Where there is no openat2(2) (gVisor): a component at a time, no link followed, none upwards. */
static int open_stepwise(int dir, const char *path, int flags)
{
    char name[256];
    int at = dir;
    for (;;) {
        size_t length = strcspn(path, "/");
        int last = path[length] == 0;
        int fd = -1;
        memcpy(name, path, length < sizeof name ? length : 0);
        name[length < sizeof name ? length : 0] = 0;
        errno = EINVAL;
        if (*name && strcmp(name, ".") != 0 && strcmp(name, "..") != 0)
            fd = open_one(at, name, last ? flags : O_RDONLY | O_DIRECTORY);
        int saved = errno;
        if (at != dir)
            close(at);
        errno = saved;
        if (fd < 0 || last)
            return fd;
        at = fd;
        path += length + 1;
    }
}

static int open_beneath(int dir, const char *path, int flags)
{
    struct open_how how = {
        .flags = (unsigned)(flags | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC),
        .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV | RESOLVE_NO_MAGICLINKS,
    };
    int fd = (int)syscall(SYS_openat2, dir, path, &how, sizeof how);
    return fd < 0 && errno == ENOSYS ? open_stepwise(dir, path, flags) : fd;
}

static uint8_t type_letter(mode_t mode)
{
    switch (mode & S_IFMT) {
    case S_IFREG:
        return 'f';
    case S_IFLNK:
        return 'l';
    case S_IFIFO:
        return 'p';
    case S_IFSOCK:
        return 's';
    default:
        return 'd'; /* a device; directories are walked, not reported */
    }
}

static void report(struct walk *w, const struct stat *about)
{
    if (w->entries >= ENTRIES_MAX) {
        w->truncated = 1;
        return;
    }
    uint8_t head[13] = {type_letter(about->st_mode)};
    put_u32(head + 1, (uint32_t)about->st_nlink);
    put_u64(head + 5, (uint64_t)about->st_size);
    w->entries++;
    if (send_frame2(w->control, FRAME_ENTRY, head, sizeof head, w->path, w->length) < 0)
        w->broken = 1;
}

static void walk_directory(struct walk *w, int dir, int depth);

static void visit(struct walk *w, int dir, const char *name, int depth)
{
    size_t before = w->length, size = strlen(name);
    struct stat about;
    if (before + 1 + size > PATH_LONGEST || ++w->visited > VISITED_MAX) {
        w->truncated = 1;
        return;
    }
    if (fstatat(dir, name, &about, AT_SYMLINK_NOFOLLOW) < 0)
        return;
    if (before)
        w->path[w->length++] = '/';
    memcpy(w->path + w->length, name, size);
    w->length += size;
    if (!S_ISDIR(about.st_mode))
        report(w, &about);
    else if (depth >= DEPTH_MAX)
        w->truncated = 1;
    else
        walk_directory(w, open_beneath(dir, name, O_RDONLY | O_DIRECTORY), depth + 1);
    w->length = before;
}

/* Takes `dir` over and closes it. */
static void walk_directory(struct walk *w, int dir, int depth)
{
    DIR *stream = dir >= 0 ? fdopendir(dir) : NULL;
    if (!stream) {
        if (dir >= 0)
            close(dir);
        return;
    }
    struct dirent *entry;
    while (!w->broken && w->visited <= VISITED_MAX && (entry = readdir(stream)))
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            visit(w, dirfd(stream), entry->d_name, depth);
    closedir(stream);
}

int collect_list(int control, int work)
{
    struct walk *w = calloc(1, sizeof *w);
    if (!w)
        return -1;
    w->control = control;
    walk_directory(w, open_beneath(work, "outputs", O_RDONLY | O_DIRECTORY), 0);
    uint8_t truncated = (uint8_t)w->truncated;
    int broken = w->broken;
    free(w);
    return broken ? -1 : send_frame(control, FRAME_LISTED, &truncated, 1);
}

static int send_content(int control, int file, uint32_t *error)
{
    static uint8_t buffer[PAYLOAD_OUT_MAX];
    for (;;) {
        ssize_t n = read(file, buffer, sizeof buffer);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            *error = (uint32_t)errno;
        if (n <= 0)
            return 0;
        if (send_frame(control, FRAME_CONTENT, buffer, (size_t)n) < 0)
            return -1;
    }
}

int collect_get(int control, int work, const char *path)
{
    uint32_t error = 0;
    int sent = 0;
    struct stat about;
    int outputs = open_beneath(work, "outputs", O_RDONLY | O_DIRECTORY);
    int file = outputs < 0 ? -1 : open_beneath(outputs, path, O_RDONLY);
    if (file < 0)
        error = (uint32_t)errno;
    else if (fstat(file, &about) < 0 || !S_ISREG(about.st_mode) || about.st_nlink != 1)
        error = EINVAL;
    else
        sent = send_content(control, file, &error);
    if (file >= 0)
        close(file);
    if (outputs >= 0)
        close(outputs);
    uint8_t end[4];
    put_u32(end, error);
    return sent < 0 ? -1 : send_frame(control, FRAME_CONTENT_END, end, sizeof end);
}
