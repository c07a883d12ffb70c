/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The part of the NBD protocol that the clients of `make bench` share: numbers
 * in network order, connecting, and the handshake (fixed newstyle).
 *
 * All calls block.  A failure ends the process with 1 and one line on standard
 * error, because a measurement that failed has no result.
 */
#pragma once

#include <endian.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define RAW_REQUEST_MAGIC UINT32_C(0x25609513)
#define RAW_REPLY_MAGIC   UINT32_C(0x67446698)

enum { RAW_REQUEST_SIZE = 28, RAW_REPLY_SIZE = 16, RAW_CHUNK_SIZE = 20 };
enum {
    RAW_READ = 0,
    RAW_WRITE = 1,
    RAW_DISCONNECT = 2,
    RAW_FLUSH = 3,
    RAW_STATUS = 7
};

/* A connection that has finished its handshake.  The caller closes fd. */
struct raw {
    int fd;
    uint64_t size; /* of the export, bytes */
};

_Noreturn void raw_fail(const char *what, const char *why);

/* Seconds of a clock that only goes forward. */
double raw_now(void);

/*
 * Open @export of the server at @address: the path of a Unix socket (it has a
 * '/'), or HOST:PORT.  With @context, a metadata context, replies are
 * structured, otherwise simple.
 */
void raw_open(struct raw *r, const char *address, const char *export,
              const char *context);
/* The same, but returns false where nobody listens (yet). */
bool raw_try_open(struct raw *r, const char *address, const char *export,
                  const char *context);

void raw_get(const struct raw *r, void *p, size_t len);
void raw_put(const struct raw *r, const void *p, size_t len);

/* Fill in the header of a request: returns its end. */
char *raw_request(char *p, uint16_t command, uint64_t cookie, uint64_t offset,
                  uint32_t length);

static inline uint16_t raw_load16(const char *p)
{
    uint16_t v;
    memcpy(&v, p, sizeof(v));
    return be16toh(v);
}

static inline uint32_t raw_load32(const char *p)
{
    uint32_t v;
    memcpy(&v, p, sizeof(v));
    return be32toh(v);
}

static inline uint64_t raw_load64(const char *p)
{
    uint64_t v;
    memcpy(&v, p, sizeof(v));
    return be64toh(v);
}

static inline char *raw_store16(char *p, uint16_t v)
{
    v = htobe16(v);
    return (char *)memcpy(p, &v, sizeof(v)) + sizeof(v);
}

static inline char *raw_store32(char *p, uint32_t v)
{
    v = htobe32(v);
    return (char *)memcpy(p, &v, sizeof(v)) + sizeof(v);
}

static inline char *raw_store64(char *p, uint64_t v)
{
    v = htobe64(v);
    return (char *)memcpy(p, &v, sizeof(v)) + sizeof(v);
}
