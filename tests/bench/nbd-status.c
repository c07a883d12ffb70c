/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * For bench.sh: list all of a metadata context, one request at a time, as a
 * backup program does, with nothing of a client's own costs.
 *
 *   nbd-status SOCKET EXPORT CONTEXT
 *
 * It prints the seconds, and how many extents there were: neighbours that are
 * alike count as one, also across replies, so all servers have the same number.
 */
#include <endian.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>

#define OPTION_MAGIC  UINT64_C(0x49484156454F5054)
#define REQUEST_MAGIC UINT32_C(0x25609513)
#define LENGTH_MAX    UINT32_C(0xffff0000) /* of a request */

enum { OPTION_GO = 7, OPTION_STRUCTURED = 8, OPTION_SET_CONTEXT = 10 };
enum { REPLY_ACK = 1, REPLY_INFO = 3, REPLY_CONTEXT = 4 };
enum { COMMAND_STATUS = 7, CHUNK_STATUS = 5, CHUNK_DONE = 1 };

static int fd;
static char buffer[8 << 20];

static void fail(const char *what)
{
    (void)fprintf(stderr, "nbd-status: %s\n", what);
    exit(1);
}

static void get(void *p, size_t len)
{
    for (char *to = p; len > 0;) {
        ssize_t n = recv(fd, to, len, MSG_WAITALL);
        if (n <= 0) {
            fail("the server has gone");
        }
        to += n;
        len -= (size_t)n;
    }
}

static void put(const void *p, size_t len)
{
    if (send(fd, p, len, MSG_NOSIGNAL) != (ssize_t)len) {
        fail("the server takes nothing");
    }
}

static uint16_t load16(const char *p)
{
    uint16_t v;
    memcpy(&v, p, sizeof(v));
    return be16toh(v);
}

static uint32_t load32(const char *p)
{
    uint32_t v;
    memcpy(&v, p, sizeof(v));
    return be32toh(v);
}

static uint64_t load64(const char *p)
{
    return (uint64_t)load32(p) << 32 | load32(p + 4);
}

static char *store16(char *p, uint16_t v)
{
    v = htobe16(v);
    return (char *)memcpy(p, &v, sizeof(v)) + sizeof(v);
}

static char *store32(char *p, uint32_t v)
{
    v = htobe32(v);
    return (char *)memcpy(p, &v, sizeof(v)) + sizeof(v);
}

static char *store64(char *p, uint64_t v)
{
    return store32(store32(p, (uint32_t)(v >> 32)), (uint32_t)v);
}

static char *store_text(char *p, const char *text)
{
    size_t len = strlen(text);
    return (char *)memcpy(store32(p, (uint32_t)len), text, len) + len;
}

/* Negotiate.  Returns how many contexts there are; *size: if it is told. */
static unsigned option(uint32_t what, const char *data, size_t len,
                       uint64_t *size)
{
    char head[20];
    unsigned contexts = 0;

    store32(store32(store64(head, OPTION_MAGIC), what), (uint32_t)len);
    put(head, 16);
    if (len > 0) {
        put(data, len);
    }
    for (;;) {
        get(head, 20);
        uint32_t kind = load32(head + 12);
        uint32_t bytes = load32(head + 16);
        if (kind & 0x80000000 || bytes > sizeof(buffer)) {
            fail("the server refuses");
        }
        get(buffer, bytes);
        if (kind == REPLY_INFO && bytes >= 12 && load16(buffer) == 0) {
            *size = load64(buffer + 2);
        }
        contexts += kind == REPLY_CONTEXT;
        if (kind == REPLY_ACK) {
            return contexts;
        }
    }
}

static uint64_t negotiate(const char *path, const char *name,
                          const char *context)
{
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    char data[1024];
    char head[18];
    uint64_t size = 0;

    if (strlen(path) >= sizeof(to.sun_path) ||
        strlen(name) + strlen(context) > 900) {
        fail("a name is too long");
    }
    strcpy(to.sun_path, path);
    fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof(to)) < 0) {
        fail(strerror(errno));
    }
    get(head, sizeof(head));
    (void)store32(head, 3);
    put(head, 4);
    (void)option(OPTION_STRUCTURED, NULL, 0, &size);
    char *end = store_text(store32(store_text(data, name), 1), context);
    if (option(OPTION_SET_CONTEXT, data, (size_t)(end - data), &size) != 1) {
        fail("there is no such context");
    }
    end = store16(store_text(data, name), 0);
    (void)option(OPTION_GO, data, (size_t)(end - data), &size);
    return size;
}

/* One request and its reply: returns how many bytes were described. */
static uint64_t ask(uint64_t offset, uint32_t length, uint64_t *extents,
                    uint32_t *last)
{
    char head[28];
    uint64_t told = 0;

    char *p = store16(store32(head, REQUEST_MAGIC), 0);
    p = store64(store64(store16(p, COMMAND_STATUS), offset), offset);
    (void)store32(p, length);
    put(head, sizeof(head));
    do {
        get(head, 20);
        uint32_t bytes = load32(head + 16);
        if (load16(head + 6) & 0x8000 || bytes > sizeof(buffer)) {
            fail("a request failed");
        }
        get(buffer, bytes);
        for (uint32_t at = 4; load16(head + 6) == CHUNK_STATUS && at < bytes;
             at += 8) {
            uint32_t flags = load32(buffer + at + 4);
            told += load32(buffer + at);
            *extents += flags != *last;
            *last = flags;
        }
    } while (!(load16(head + 4) & CHUNK_DONE));
    return told;
}

static double now(void)
{
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

int main(int argc, char **argv)
{
    uint64_t extents = 0;
    uint32_t last = UINT32_MAX;

    if (argc != 4) {
        fail("SOCKET EXPORT CONTEXT");
    }
    uint64_t size = negotiate(argv[1], argv[2], argv[3]);
    double begin = now();
    for (uint64_t at = 0; at < size;) {
        uint64_t left = size - at;
        uint64_t told = ask(at, left < LENGTH_MAX ? (uint32_t)left : LENGTH_MAX,
                            &extents, &last);
        if (told == 0) {
            fail("an empty reply");
        }
        at += told;
    }
    (void)printf("%.6f %lu\n", now() - begin, (unsigned long)extents);
    return 0;
}
