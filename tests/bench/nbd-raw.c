/* SPDX-License-Identifier: BSD-3-Clause */
#include "nbd-raw.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define OPTION_MAGIC UINT64_C(0x49484156454F5054)
#define SERVER_MAGIC UINT64_C(0x4e42444d41474943)

enum { OPTION_GO = 7, OPTION_STRUCTURED = 8, OPTION_SET_CONTEXT = 10 };
enum { REPLY_ACK = 1, REPLY_INFO = 3, REPLY_CONTEXT = 4 };
enum { INFO_EXPORT = 0, NO_ZEROES = 3, NAME_MAX_LEN = 900 };

void raw_fail(const char *what, const char *why)
{
    (void)fprintf(stderr, "%s: %s%s%s\n", program_invocation_short_name, what,
                  why ? ": " : "", why ? why : "");
    exit(1);
}

double raw_now(void)
{
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

void raw_get(const struct raw *r, void *p, size_t len)
{
    for (char *to = p; len > 0;) {
        ssize_t n = recv(r->fd, to, len, MSG_WAITALL);
        if (n <= 0) {
            raw_fail("the server has gone", n < 0 ? strerror(errno) : NULL);
        }
        to += n;
        len -= (size_t)n;
    }
}

void raw_put(const struct raw *r, const void *p, size_t len)
{
    if (send(r->fd, p, len, MSG_NOSIGNAL) != (ssize_t)len) {
        raw_fail("the server takes nothing", strerror(errno));
    }
}

char *raw_request(char *p, uint16_t command, uint64_t cookie, uint64_t offset,
                  uint32_t length)
{
    p = raw_store16(raw_store32(p, RAW_REQUEST_MAGIC), 0);
    p = raw_store64(raw_store16(p, command), cookie);
    return raw_store32(raw_store64(p, offset), length);
}

static char *store_text(char *p, const char *text)
{
    size_t len = strlen(text);
    return (char *)memcpy(raw_store32(p, (uint32_t)len), text, len) + len;
}

static int connect_unix(const char *path)
{
    struct sockaddr_un to = {.sun_family = AF_UNIX};

    if (strlen(path) >= sizeof(to.sun_path)) {
        raw_fail(path, "too long for a socket");
    }
    strcpy(to.sun_path, path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        raw_fail("socket", strerror(errno));
    }
    if (connect(fd, (struct sockaddr *)&to, sizeof(to)) < 0) {
        int error = errno;
        (void)close(fd);
        errno = error;
        return -1;
    }
    return fd;
}

static int connect_tcp(const char *address)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM};
    struct addrinfo *list;
    char host[256];
    const char *port = strrchr(address, ':');
    int fd = -1, on = 1;

    if (!port || (size_t)(port - address) >= sizeof(host)) {
        raw_fail(address, "neither HOST:PORT nor the path of a socket");
    }
    (void)snprintf(host, sizeof(host), "%.*s", (int)(port - address), address);
    int r = getaddrinfo(host, port + 1, &hints, &list);
    if (r) {
        raw_fail(address, gai_strerror(r));
    }
    for (struct addrinfo *a = list; a && fd < 0; a = a->ai_next) {
        fd = socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC,
                    a->ai_protocol);
        if (fd >= 0 && connect(fd, a->ai_addr, a->ai_addrlen) < 0) {
            int error = errno;
            (void)close(fd);
            errno = error;
            fd = -1;
        }
    }
    freeaddrinfo(list);
    if (fd >= 0) {
        (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    }
    return fd;
}

/* Negotiate.  Returns how many contexts the server has chosen. */
static unsigned option(struct raw *r, uint32_t what, const char *data,
                       size_t len)
{
    char head[20], info[4096];
    unsigned contexts = 0;

    raw_store32(raw_store32(raw_store64(head, OPTION_MAGIC), what),
                (uint32_t)len);
    raw_put(r, head, 16);
    if (len > 0) {
        raw_put(r, data, len);
    }
    for (;;) {
        raw_get(r, head, 20);
        uint32_t kind = raw_load32(head + 12);
        uint32_t bytes = raw_load32(head + 16);
        if (kind & 0x80000000 || bytes > sizeof(info)) {
            raw_fail("the server refuses", NULL);
        }
        raw_get(r, info, bytes);
        if (kind == REPLY_INFO && bytes >= 12 &&
            raw_load16(info) == INFO_EXPORT) {
            r->size = raw_load64(info + 2);
        }
        contexts += kind == REPLY_CONTEXT;
        if (kind == REPLY_ACK) {
            return contexts;
        }
    }
}

static void negotiate(struct raw *r, const char *export, const char *context)
{
    char data[1024], head[18];

    if (strlen(export) + (context ? strlen(context) : 0) > NAME_MAX_LEN) {
        raw_fail("a name is too long", NULL);
    }
    raw_get(r, head, sizeof(head));
    if (raw_load64(head) != SERVER_MAGIC ||
        raw_load64(head + 8) != OPTION_MAGIC) {
        raw_fail("this is no NBD server", NULL);
    }
    (void)raw_store32(head, NO_ZEROES);
    raw_put(r, head, 4);
    if (context) {
        (void)option(r, OPTION_STRUCTURED, NULL, 0);
        char *end = store_text(raw_store32(store_text(data, export), 1),
                               context);
        if (option(r, OPTION_SET_CONTEXT, data, (size_t)(end - data)) != 1) {
            raw_fail(context, "there is no such context");
        }
    }
    char *end = raw_store16(store_text(data, export), 0);
    (void)option(r, OPTION_GO, data, (size_t)(end - data));
}

bool raw_try_open(struct raw *r, const char *address, const char *export,
                  const char *context)
{
    *r = (struct raw){.fd = strchr(address, '/') ? connect_unix(address)
                                                 : connect_tcp(address)};
    if (r->fd < 0) {
        return false;
    }
    negotiate(r, export, context);
    return true;
}

void raw_open(struct raw *r, const char *address, const char *export,
              const char *context)
{
    if (!raw_try_open(r, address, export, context)) {
        raw_fail(address, strerror(errno));
    }
}
