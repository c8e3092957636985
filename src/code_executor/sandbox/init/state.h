/* What the parts of init share: its state, and how it gives up. */
#ifndef CE_STATE_H
#define CE_STATE_H

#include <stddef.h>
#include <stdint.h>
#include <time.h>

#include "become.h"
#include "program.h"
#include "setup.h"

struct init {
    int host;    /* the host's frames are read here */
    int control; /* ours are written here; in a sandbox of the launcher's the same socket */
    int children, work, staging;
    const struct sandbox *sandbox;
    const struct filter *filter;
    struct program program;
    uint8_t *input;
    size_t input_size;
    int warm;    /* a started-ahead interpreter waits */
    int running; /* a program runs */
    int ran;     /* a program has run: no more staging */
    int list;    /* send the listing after this program */
    int wait_room; /* the program's standard input is full */
    struct timespec began;
};

/* Tell the host which step failed, with errno, and end. */
_Noreturn void fail(struct init *s, const char *step);
/* The host is gone or closed the channel: there is nobody to serve. */
_Noreturn void leave(void);
void must_send(int result);

/* ending.c */

/* Kill and reap until PID 1 is alone. kill(-1) is atomic against fork: nothing slips past it. */
void kill_everything(void);
/* Forward what there is; 0 when nothing is there now. */
int forward(struct init *s, int fd, uint8_t type);
/* A child has died. */
void reap(struct init *s);
/* The zygote says that the program it forked has ended. */
void ended_outside(struct init *s);

/* job.c */

/* Receive one frame of the host and do what it says. */
void on_frame(struct init *s);
/* Write to the program's standard input what there is room for. */
void feed(struct init *s);

#endif
