/* A fuzzer for what init does with the host's frames: receiving, staging, programs, collecting.
 *
 * One input is the host's whole side of a conversation. Real are proto.c, job.c, stage.c and
 * collect.c, on a real file system (place.c); replaced are the start and the end of a program (one
 * runs from PROGRAM to KILL and does nothing) and init's giving up, which returns here.
 *
 * Checked besides the sanitizers: every frame sent is well formed, and nothing is made outside of
 * /work. Built with libFuzzer where clang has it; standalone.c is the loop elsewhere. */
#include <err.h>
#include <fcntl.h>
#include <ftw.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "collect.h"
#include "place.h"
#include "proto.h"
#include "state.h"

enum { INPUT_MOST = 64 * 1024, ENTRY_HEAD = 13, PATH_MOST = 1024, KEPT_DEPTH = 16 };

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static jmp_buf given_up;
static int killed, work;
static struct stat root_before;

/* ── what stands in for the rest of init ── */

_Noreturn void fail(struct init *s, const char *step)
{
    (void)s;
    if (strlen(step) > 31)
        abort();
    longjmp(given_up, 1);
}

_Noreturn void leave(void)
{
    longjmp(given_up, 1);
}

void must_send(int result)
{
    if (result < 0)
        leave();
}

void kill_everything(void)
{
}

/* -Dkill=… in the build: the real one would end this process group, or more. */
int fuzz_kill(pid_t pid, int number)
{
    killed = pid == -1 && number == SIGKILL;
    return 0;
}

const char *program_pipes(struct program *p, struct far_ends *far, int warm, int zygote)
{
    *p = (struct program){0, -1, -1, -1, {-1, -1}, -1, -1, NULL, 0};
    *far = (struct far_ends){-1, -1, -1, -1, -1};
    return warm || zygote ? "not here" : NULL;
}

const char *program_exec(struct program *p, struct far_ends *far, char **argv, char **env,
                         uint32_t processes, const struct filter *filter)
{
    size_t size = 0;
    (void)far;
    (void)processes;
    (void)filter;
    for (char **s = argv; *s; s++)
        size += strlen(*s);
    for (char **s = env; *s; s++)
        size += strlen(*s);
    p->pid = (pid_t)(size % 1000) + 2;
    return NULL;
}

void program_close(struct program *p)
{
    p->pid = 0;
}

/* ── what is sent ── */

static void check_frame(uint8_t type, size_t size)
{
    int fits = size <= PAYLOAD_OUT_MAX;
    if (type == FRAME_ENTRY)
        fits = size > ENTRY_HEAD && size <= ENTRY_HEAD + PATH_MOST;
    if (type == FRAME_LISTED)
        fits = size == 1;
    if (type == FRAME_CONTENT_END)
        fits = size == 4;
    if (!fits || !strchr("BLZCc", type))
        abort();
}

/* -Dwritev=… in the build: send_frame2 sends each frame with one call. */
ssize_t fuzz_writev(int fd, const struct iovec *parts, int count)
{
    size_t total = 0;
    uint8_t header[HEADER_SIZE];
    (void)fd;
    if (count != 3 || parts[0].iov_len != HEADER_SIZE)
        abort();
    memcpy(header, parts[0].iov_base, sizeof header);
    struct cursor c = {header + 1, 4, 0};
    for (int i = 0; i < count; i++)
        total += parts[i].iov_len;
    if (take_u32(&c) != total - HEADER_SIZE)
        abort();
    check_frame(header[0], total - HEADER_SIZE);
    return (ssize_t)total;
}

/* ── one conversation ── */

static int remove_one(const char *path, const struct stat *about, int kind, struct FTW *where)
{
    (void)about;
    (void)kind;
    return where->level == 0 ? 0 : remove(path);
}

static void clean_work(void)
{
    struct stat now;
    if (stat("/", &now) < 0 || now.st_mtim.tv_sec != root_before.st_mtim.tv_sec ||
        now.st_mtim.tv_nsec != root_before.st_mtim.tv_nsec)
        abort(); /* something was made outside of /work */
    if (nftw("/work", remove_one, KEPT_DEPTH, FTW_DEPTH | FTW_PHYS) != 0 ||
        mkdir("/work/outputs", 0777) < 0 || chmod("/work/outputs", 0777) < 0)
        err(70, "clean /work");
}

static void converse(struct init *s)
{
    for (;;) {
        on_frame(s);
        if (s->running && killed) {
            s->running = killed = 0;
            if (s->list)
                must_send(collect_list(s->control, s->work));
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct sandbox box;
    static struct init s;
    int pair[2];
    if (size > INPUT_MOST)
        return 0;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
        err(70, "socketpair");
    if (write_all(pair[1], data, size) < 0 || shutdown(pair[1], SHUT_WR) < 0)
        err(70, "feed");
    s = (struct init){.control = pair[0], .staging = -1, .work = work, .sandbox = &box};
    s.program = (struct program){0, -1, -1, -1, {-1, -1}, -1, -1, NULL, 0};
    killed = 0;
    if (setjmp(given_up) == 0)
        converse(&s);
    if (s.staging >= 0)
        close(s.staging);
    free(s.input);
    close(pair[0]);
    close(pair[1]);
    clean_work();
    return 0;
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    const char *directory = getenv("FUZZ_PLACE");
    (void)argc;
    (void)argv;
    if (!directory)
        errx(64, "FUZZ_PLACE names no directory");
    enter_place(directory);
    work = open("/work", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (work < 0 || stat("/", &root_before) < 0)
        err(70, "/work");
    return 0;
}
