#include "place.h"

#include <err.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum { NO_PLACE = 70 };

static void must(int result, const char *what)
{
    if (result < 0)
        err(NO_PLACE, "%s", what);
}

static void write_text(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    must(fd, path);
    must((int)write(fd, text, strlen(text)), path);
    close(fd);
}

static void enter_namespaces(void)
{
    uid_t uid = geteuid();
    gid_t gid = getegid();
    char map[32];
    must(unshare(CLONE_NEWNS | CLONE_NEWPID | (uid ? CLONE_NEWUSER : 0)), "unshare");
    if (uid == 0)
        return;
    write_text("/proc/self/setgroups", "deny");
    snprintf(map, sizeof map, "0 %u 1", uid);
    write_text("/proc/self/uid_map", map);
    snprintf(map, sizeof map, "0 %u 1", gid);
    write_text("/proc/self/gid_map", map);
}

/* The caller's process stays outside: it waits, and ends as its child ended. */
static void become_first(void)
{
    int status;
    pid_t pid = fork();
    must(pid, "fork");
    if (pid > 0) {
        must(waitpid(pid, &status, 0), "wait");
        _exit(WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
    }
    must(prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0), "die with the parent");
}

static void make_name(const char *name)
{
    char host[32], target[64];
    struct stat about;
    snprintf(host, sizeof host, "/%s", name);
    if (lstat(host, &about) < 0)
        return;
    ssize_t size = readlink(host, target, sizeof target - 1);
    if (size > 0) {
        target[size] = 0;
        must(symlink(target, name), name);
        return;
    }
    must(mkdir(name, 0755), name);
    must(mount(host, name, NULL, MS_BIND | MS_REC, NULL), name);
}

void enter_place(const char *directory)
{
    static const char *const NAMES[] = {"usr", "bin", "sbin", "lib", "lib64", "dev"};
    enter_namespaces();
    become_first();
    must(mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL), "private mounts");
    must(mount("tmpfs", directory, "tmpfs", 0, "size=32m,nr_inodes=8192,mode=0777"), "tmpfs");
    must(chdir(directory), directory);
    for (size_t i = 0; i < sizeof NAMES / sizeof *NAMES; i++)
        make_name(NAMES[i]);
    must(mkdir("proc", 0755), "proc");
    if (mount("proc", "proc", "proc", 0, NULL) < 0)
        must(mount("/proc", "proc", NULL, MS_BIND | MS_REC, NULL), "proc");
    must(mkdir("work", 0777), "work");
    must(chmod("work", 0777), "work");
    must(mkdir("work/outputs", 0777), "outputs");
    must(chmod("work/outputs", 0777), "outputs");
    must(chroot("."), "chroot");
    must(chdir("/"), "chdir");
}
