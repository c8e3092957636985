#include "stage.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "become.h"

/* The host checks paths too; this end does not rely on it. */
static int path_ok(const char *path)
{
    if (*path == 0 || *path == '/')
        return 0;
    for (const char *at = path; at; at = strchr(at, '/')) {
        at += *at == '/';
        size_t length = strcspn(at, "/");
        if (length == 0 || length > 255)
            return 0;
        if (at[0] == '.' && (length == 1 || (length == 2 && at[1] == '.')))
            return 0;
    }
    return 1;
}

static int open_parents(const char *path, const char **leaf)
{
    int dir = open("/work", O_PATH | O_DIRECTORY | O_CLOEXEC);
    const char *slash;
    while (dir >= 0 && (slash = strchr(path, '/'))) {
        char name[256];
        size_t length = (size_t)(slash - path);
        memcpy(name, path, length);
        name[length] = 0;
        if (mkdirat(dir, name, 0755) < 0 && errno != EEXIST) {
            close(dir);
            return -1;
        }
        int next = openat(dir, name, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        close(dir);
        dir = next;
        path = slash + 1;
    }
    *leaf = path;
    return dir;
}

int stage_open(const char *path, mode_t mode)
{
    if (!path_ok(path)) {
        errno = EINVAL;
        return -1;
    }
    /* As the program's user: the files are its own, and its permissions are all that is used. */
    act_as_program();
    const char *leaf = NULL;
    int dir = open_parents(path, &leaf);
    int file = -1;
    if (dir >= 0) {
        /* Truncated, not replaced: a started-ahead interpreter may hold the main file open. */
        file = openat(dir, leaf, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, mode);
        int saved = errno;
        close(dir);
        errno = saved;
    }
    act_as_init();
    return file;
}
