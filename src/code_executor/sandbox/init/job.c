/* The host's frames: staging, programs, collecting. Each is hostile until it has been checked. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "collect.h"
#include "proto.h"
#include "stage.h"
#include "state.h"

enum { STRINGS_MAX = 65536, INPUT_MAX = 64 * 1024 * 1024 };

/* The host wants it over. For a child of ours the wait status comes by the ordinary way. */
static void kill_program(struct init *s)
{
    if (s->running)
        (void)kill(-1, SIGKILL);
}

static void on_file(struct init *s, struct cursor *c, mode_t mode)
{
    char path[4096];
    if (c->left == 0 || c->left >= sizeof path || memchr(c->at, 0, c->left)) {
        errno = EPROTO;
        fail(s, "stage");
    }
    memcpy(path, c->at, c->left);
    path[c->left] = 0;
    if (s->staging >= 0)
        close(s->staging);
    s->staging = stage_open(path, mode);
    if (s->staging < 0)
        fail(s, "stage");
}

static void on_data(struct init *s, struct cursor *c)
{
    if (s->staging < 0 || write_all(s->staging, c->at, c->left) < 0)
        fail(s, "stage data");
}

static void on_stdin(struct init *s, struct cursor *c)
{
    uint8_t *grown = NULL;
    if (s->input_size + c->left <= INPUT_MAX)
        grown = realloc(s->input, s->input_size + c->left + 1);
    if (!grown) {
        errno = ENOMEM;
        fail(s, "stdin");
    }
    memcpy(grown + s->input_size, c->at, c->left);
    s->input = grown;
    s->input_size += c->left;
}

void feed(struct init *s)
{
    struct program *p = &s->program;
    s->wait_room = 0;
    while (p->in >= 0 && p->input_left > 0) {
        ssize_t n = write(p->in, p->input, p->input_left);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN) {
            s->wait_room = 1;
            return;
        }
        if (n < 0)
            break; /* it closed its standard input */
        p->input += n;
        p->input_left -= (size_t)n;
    }
    if (p->in >= 0)
        close(p->in);
    p->in = -1;
}

static size_t size_of(char **strings)
{
    size_t size = 0;
    for (; *strings; strings++)
        size += strlen(*strings) + 1;
    return size;
}

static char *append(char *at, char **strings)
{
    for (; *strings; strings++)
        at = stpcpy(at, *strings) + 1;
    return at;
}

/* The job of a waiting interpreter: the size of what follows, count of arguments, arguments,
 * NAME=VALUE …, each with NUL. It goes in one piece and tells its size, so the interpreter wakes
 * once: for the end of the socket it would have to be woken again. */
static const char *release(struct init *s, char **args, char **env)
{
    enum { NUMBER_MAX = 24 };
    char number[NUMBER_MAX];
    unsigned count = 0;
    while (args[count])
        count++;
    size_t size = (size_t)snprintf(number, sizeof number, "%u", count) + 1 + size_of(args) + size_of(env);
    char *job = malloc(NUMBER_MAX + size);
    if (!job)
        return "release";
    char *end = job + snprintf(job, NUMBER_MAX, "%zu", size) + 1;
    end = append(append(stpcpy(end, number) + 1, args), env);
    int go = s->program.go, sent = write_all(go, job, (size_t)(end - job));
    free(job);
    if (sent < 0 || shutdown(go, SHUT_WR) < 0)
        return "release";
    s->warm = 0;
    return NULL;
}

/* The run needs a fresh interpreter: the one that waits has to go, unheard. */
static void discard_warm(struct init *s)
{
    struct signalfd_siginfo info;
    kill_everything();
    while (read(s->children, &info, sizeof info) > 0)
        continue;
    program_close(&s->program);
    s->warm = 0;
}

static const char *start(struct init *s, int warm, char **argv, char **env)
{
    if (warm)
        return s->warm ? release(s, argv, env) : "no warm interpreter";
    struct far_ends far;
    if (!argv[0])
        return "no program";
    if (s->warm)
        discard_warm(s);
    const char *failed = program_pipes(&s->program, &far, 0, 0);
    if (failed)
        return failed;
    return program_exec(&s->program, &far, argv, env, s->sandbox->processes, s->filter);
}

static void on_program(struct init *s, struct cursor *c)
{
    int warm = take_u8(c) == 1;
    s->list = take_u8(c) == 1;
    char **argv = take_strings(c, STRINGS_MAX);
    char **env = take_strings(c, STRINGS_MAX);
    errno = EPROTO;
    if (c->bad || c->left || s->running)
        fail(s, "program frame");
    if (s->staging >= 0)
        close(s->staging);
    s->staging = -1;
    clock_gettime(CLOCK_MONOTONIC, &s->began);
    const char *failed = start(s, warm, argv, env);
    if (failed)
        fail(s, failed);
    free_strings(argv);
    free_strings(env);
    s->running = s->ran = 1;
    s->program.input = s->input;
    s->program.input_left = s->input_size;
    if (!warm) /* a waiting interpreter has no way to fail now, and the host has begun its clock */
        must_send(send_frame(s->control, FRAME_BEGAN, NULL, 0));
    feed(s);
}

static void on_get(struct init *s, struct cursor *c)
{
    char path[4096];
    if (c->left == 0 || c->left >= sizeof path || memchr(c->at, 0, c->left)) {
        errno = EPROTO;
        fail(s, "get");
    }
    memcpy(path, c->at, c->left);
    path[c->left] = 0;
    must_send(collect_get(s->control, s->work, path));
}

static void on_built(struct init *s, struct cursor *c)
{
    uint32_t most = take_u32(c);
    char *path = take_string(c);
    if (c->bad || c->left || !*path) {
        errno = EPROTO;
        fail(s, "built");
    }
    must_send(collect_built(s->control, s->work, path, most));
    free(path);
}

/* Which frames fit when: staging before the first program, GET between and after programs. */
static int in_order(const struct init *s, uint8_t type)
{
    switch (type) {
    case FRAME_FILE:
    case FRAME_EXECUTABLE:
    case FRAME_DATA:
    case FRAME_STDIN:
        return !s->ran;
    case FRAME_PROGRAM:
        return !s->running;
    case FRAME_GET:
    case FRAME_BUILT:
        return s->ran && !s->running;
    default:
        return type == FRAME_KILL;
    }
}

void on_frame(struct init *s)
{
    uint8_t type, *payload;
    uint32_t size;
    if (receive_frame(s->host, &type, &payload, &size) <= 0)
        leave();
    struct cursor c = {payload, size, 0};
    if (!in_order(s, type)) {
        errno = EPROTO;
        fail(s, "frame out of order");
    }
    switch (type) {
    case FRAME_FILE:
        on_file(s, &c, 0644);
        break;
    case FRAME_EXECUTABLE:
        on_file(s, &c, 0755);
        break;
    case FRAME_DATA:
        on_data(s, &c);
        break;
    case FRAME_STDIN:
        on_stdin(s, &c);
        break;
    case FRAME_PROGRAM:
        on_program(s, &c);
        break;
    case FRAME_KILL:
        kill_program(s);
        break;
    case FRAME_BUILT:
        on_built(s, &c);
        break;
    default:
        on_get(s, &c);
    }
    free(payload);
}
