/* The control channel: one byte stream of frames between the host and init.
 *
 * A frame is a type (1 byte), a payload length (4 bytes, little-endian) and the payload. Both ends
 * treat it as hostile input. The messages, their payloads and their order are written out in
 * frames.py, the one description of this protocol; the letters here are the same.
 */
#ifndef CE_PROTO_H
#define CE_PROTO_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum {
    /* host to init */
    FRAME_FILE = 'F',
    FRAME_EXECUTABLE = 'A',
    FRAME_DATA = 'D',
    FRAME_STDIN = 'I',
    FRAME_PROGRAM = 'P',
    FRAME_KILL = 'K',
    FRAME_GET = 'G',
    FRAME_BUILT = 'T',
    /* init to host */
    FRAME_READY = 'R',
    FRAME_BEGAN = 'B',
    FRAME_STDOUT = 'O',
    FRAME_STDERR = 'E',
    FRAME_ENDED = 'X',
    FRAME_ENTRY = 'L',
    FRAME_LISTED = 'Z',
    FRAME_CONTENT = 'C',
    FRAME_CONTENT_END = 'c',
    FRAME_FAILED = '!',
};

enum {
    HEADER_SIZE = 5,
    PAYLOAD_IN_MAX = 4 * 1024 * 1024, /* host to init */
    PAYLOAD_OUT_MAX = 64 * 1024,      /* init to host */
    SENT_FDS_MAX = 12,
};

/* A payload being read: every take_* checks what is left and sets `bad` past the end. */
struct cursor {
    const uint8_t *at;
    size_t left;
    int bad;
};

uint8_t take_u8(struct cursor *c);
uint32_t take_u32(struct cursor *c);
/* A counted string without NUL inside, copied and terminated; NULL and `bad` otherwise. */
char *take_string(struct cursor *c);
/* A count and that many strings, as a NULL-terminated vector; at most `max` of them. */
char **take_strings(struct cursor *c, uint32_t max);
void free_strings(char **strings);

void put_u32(uint8_t *at, uint32_t value);
void put_u64(uint8_t *at, uint64_t value);

/* Read or write all of it; -1 with errno, or with errno 0 at end of file. */
int read_all(int fd, void *buffer, size_t size);
int write_all(int fd, const void *buffer, size_t size);

/* Send one frame whole. `head` and `body` are the two parts of its payload; -1 with errno. */
int send_frame2(int fd, uint8_t type, const void *head, size_t head_size, const void *body,
                size_t body_size);
int send_frame(int fd, uint8_t type, const void *payload, size_t size);
/* Between these two, frames are gathered while they are few and small, and sent together. */
void hold_frames(void);
int release_frames(int fd);
/* Send bytes with file descriptors attached, at most SENT_FDS_MAX. 0, or -1 with errno. */
int send_fds(int fd, const void *bytes, size_t size, const int *fds, size_t count);
/* Receive one frame; the payload is malloc'ed. 0 at an orderly end, -1 with errno, else 1. */
int receive_frame(int fd, uint8_t *type, uint8_t **payload, uint32_t *size);

#endif
