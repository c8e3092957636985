#include "proto.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

static const uint8_t *take(struct cursor *c, size_t size)
{
    if (c->bad || c->left < size) {
        c->bad = 1;
        return NULL;
    }
    const uint8_t *at = c->at;
    c->at += size;
    c->left -= size;
    return at;
}

uint8_t take_u8(struct cursor *c)
{
    const uint8_t *at = take(c, 1);
    return at ? *at : 0;
}

uint32_t take_u32(struct cursor *c)
{
    const uint8_t *at = take(c, 4);
    if (!at)
        return 0;
    return (uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

char *take_string(struct cursor *c)
{
    uint32_t size = take_u32(c);
    const uint8_t *at = take(c, size);
    if (!at || memchr(at, 0, size)) {
        c->bad = 1;
        return NULL;
    }
    char *copy = malloc((size_t)size + 1);
    if (!copy) {
        c->bad = 1;
        return NULL;
    }
    memcpy(copy, at, size);
    copy[size] = 0;
    return copy;
}

char **take_strings(struct cursor *c, uint32_t max)
{
    uint32_t count = take_u32(c);
    if (c->bad || count > max) {
        c->bad = 1;
        return NULL;
    }
    char **strings = calloc((size_t)count + 1, sizeof *strings);
    if (!strings) {
        c->bad = 1;
        return NULL;
    }
    for (uint32_t i = 0; i < count && !c->bad; i++)
        strings[i] = take_string(c);
    if (c->bad) {
        free_strings(strings);
        return NULL;
    }
    return strings;
}

void free_strings(char **strings)
{
    if (!strings)
        return;
    for (char **s = strings; *s; s++)
        free(*s);
    free(strings);
}

void put_u32(uint8_t *at, uint32_t value)
{
    for (int i = 0; i < 4; i++)
        at[i] = (uint8_t)(value >> (8 * i));
}

void put_u64(uint8_t *at, uint64_t value)
{
    for (int i = 0; i < 8; i++)
        at[i] = (uint8_t)(value >> (8 * i));
}

/* After a failure: whether to try again. What others hand us may be non-blocking, and a socket of
 * the host is in gVisor, whatever it looks like. */
static int again(int fd, short events)
{
    struct pollfd polled = {fd, events, 0};
    if (errno == EINTR)
        return 1;
    return errno == EAGAIN && (poll(&polled, 1, -1) >= 0 || errno == EINTR);
}

int read_all(int fd, void *buffer, size_t size)
{
    uint8_t *at = buffer;
    while (size > 0) {
        ssize_t n = read(fd, at, size);
        if (n < 0 && again(fd, POLLIN))
            continue;
        if (n <= 0) {
            if (n == 0)
                errno = 0;
            return -1;
        }
        at += n;
        size -= (size_t)n;
    }
    return 0;
}

int write_all(int fd, const void *buffer, size_t size)
{
    const uint8_t *at = buffer;
    while (size > 0) {
        ssize_t n = write(fd, at, size);
        if (n < 0 && again(fd, POLLOUT))
            continue;
        if (n < 0)
            return -1;
        at += n;
        size -= (size_t)n;
    }
    return 0;
}

/* Drop the first `done` bytes of an iovec array. */
static void advance(struct iovec *parts, int count, size_t done)
{
    for (int i = 0; i < count && done > 0; i++) {
        size_t step = done < parts[i].iov_len ? done : parts[i].iov_len;
        parts[i].iov_base = (uint8_t *)parts[i].iov_base + step;
        parts[i].iov_len -= step;
        done -= step;
    }
}

/* Frames that follow each other at once go out in one write: the host wakes once for them. */
static struct {
    uint8_t bytes[4096];
    size_t size;
    int held;
} cork;

void hold_frames(void)
{
    cork.held = 1;
}

int release_frames(int fd)
{
    size_t size = cork.size;
    cork.size = 0;
    cork.held = 0;
    return size ? write_all(fd, cork.bytes, size) : 0;
}

static int add_to_held(const struct iovec *parts, int count, size_t total)
{
    if (!cork.held || cork.size + total > sizeof cork.bytes)
        return 0;
    for (int i = 0; i < count; i++) {
        if (parts[i].iov_len)
            memcpy(cork.bytes + cork.size, parts[i].iov_base, parts[i].iov_len);
        cork.size += parts[i].iov_len;
    }
    return 1;
}

int send_frame2(int fd, uint8_t type, const void *head, size_t head_size, const void *body,
                size_t body_size)
{
    uint8_t header[HEADER_SIZE] = {type};
    put_u32(header + 1, (uint32_t)(head_size + body_size));
    struct iovec parts[3] = {
        {header, sizeof header},
        {(void *)(uintptr_t)head, head_size},
        {(void *)(uintptr_t)body, body_size},
    };
    size_t left = sizeof header + head_size + body_size;
    if (add_to_held(parts, 3, left))
        return 0;
    if (cork.held && (release_frames(fd) < 0))
        return -1;
    while (left > 0) {
        ssize_t n = writev(fd, parts, 3);
        if (n < 0 && again(fd, POLLOUT))
            continue;
        if (n < 0)
            return -1;
        advance(parts, 3, (size_t)n);
        left -= (size_t)n;
    }
    return 0;
}

int send_frame(int fd, uint8_t type, const void *payload, size_t size)
{
    return send_frame2(fd, type, payload, size, NULL, 0);
}

int send_fds(int fd, const void *bytes, size_t size, const int *fds, size_t count)
{
    struct iovec part = {(void *)(uintptr_t)bytes, size};
    union {
        char space[CMSG_SPACE(SENT_FDS_MAX * sizeof(int))];
        struct cmsghdr align;
    } control;
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    if (count > SENT_FDS_MAX) {
        errno = EINVAL;
        return -1;
    }
    memset(&control, 0, sizeof control);
    message.msg_control = control.space;
    message.msg_controllen = CMSG_SPACE(count * sizeof(int));
    struct cmsghdr *c = CMSG_FIRSTHDR(&message);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(count * sizeof(int));
    memcpy(CMSG_DATA(c), fds, count * sizeof(int));
    return sendmsg(fd, &message, MSG_NOSIGNAL) == (ssize_t)size ? 0 : -1;
}

int receive_frame(int fd, uint8_t *type, uint8_t **payload, uint32_t *size)
{
    uint8_t header[HEADER_SIZE];
    if (read_all(fd, header, sizeof header) < 0)
        return errno == 0 ? 0 : -1;
    struct cursor c = {header + 1, 4, 0};
    *type = header[0];
    *size = take_u32(&c);
    if (*size > PAYLOAD_IN_MAX) {
        errno = EMSGSIZE;
        return -1;
    }
    *payload = malloc((size_t)*size + 1);
    if (!*payload)
        return -1;
    if (read_all(fd, *payload, *size) < 0) {
        int saved = errno ? errno : EPROTO;
        free(*payload);
        errno = saved;
        return -1;
    }
    return 1;
}
