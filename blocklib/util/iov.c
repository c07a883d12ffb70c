/* SPDX-License-Identifier: BSD-3-Clause */
/* Slices of scattered buffers, and buffers for data. */
#include "util/iov.h"

#include <stdlib.h>
#include <string.h>

#define BUF_ALIGN 4096

/* A place in an iovec. */
struct cursor {
    const struct iovec *iov;
    int left; /* elements from iov on */
    size_t skip;
};

static struct cursor cursor_at(const struct iovec *iov, int cnt,
                               uint64_t offset)
{
    while (cnt > 0 && offset >= iov->iov_len) {
        offset -= iov->iov_len;
        iov++;
        cnt--;
    }
    return (struct cursor){iov, cnt, (size_t)offset};
}

/* The next piece, of at most @bytes; length 0 at the end of the iovec. */
static struct iovec cursor_next(struct cursor *c, uint64_t bytes)
{
    struct iovec piece = {NULL, 0};

    while (c->left > 0 && piece.iov_len == 0) {
        size_t n = c->iov->iov_len - c->skip;

        piece.iov_base = (char *)c->iov->iov_base + c->skip;
        piece.iov_len = n < bytes ? n : (size_t)bytes;
        c->iov++;
        c->left--;
        c->skip = 0;
    }
    return piece;
}

uint64_t iov_bytes(const struct iovec *iov, int cnt)
{
    uint64_t sum = 0;

    for (int i = 0; i < cnt; i++) {
        sum += iov[i].iov_len;
    }
    return sum;
}

int iov_slice(struct iovec *dst, const struct iovec *src, int cnt,
              uint64_t offset, uint64_t bytes)
{
    struct cursor c = cursor_at(src, cnt, offset);
    int n = 0;

    while (bytes > 0) {
        struct iovec piece = cursor_next(&c, bytes);

        if (piece.iov_len == 0) {
            break;
        }
        dst[n++] = piece;
        bytes -= piece.iov_len;
    }
    return n;
}

void iov_fill(const struct iovec *iov, int cnt, uint64_t offset, int byte,
              uint64_t bytes)
{
    struct cursor c = cursor_at(iov, cnt, offset);

    while (bytes > 0) {
        struct iovec piece = cursor_next(&c, bytes);

        if (piece.iov_len == 0) {
            break;
        }
        memset(piece.iov_base, byte, piece.iov_len);
        bytes -= piece.iov_len;
    }
}

void iov_from_buf(const struct iovec *iov, int cnt, uint64_t offset,
                  const void *buf, uint64_t bytes)
{
    struct cursor c = cursor_at(iov, cnt, offset);
    const char *from = buf;

    while (bytes > 0) {
        struct iovec piece = cursor_next(&c, bytes);

        if (piece.iov_len == 0) {
            break;
        }
        memcpy(piece.iov_base, from, piece.iov_len);
        from += piece.iov_len;
        bytes -= piece.iov_len;
    }
}

void iov_to_buf(const struct iovec *iov, int cnt, uint64_t offset, void *buf,
                uint64_t bytes)
{
    struct cursor c = cursor_at(iov, cnt, offset);
    char *to = buf;

    while (bytes > 0) {
        struct iovec piece = cursor_next(&c, bytes);

        if (piece.iov_len == 0) {
            break;
        }
        memcpy(to, piece.iov_base, piece.iov_len);
        to += piece.iov_len;
        bytes -= piece.iov_len;
    }
}

void *buf_alloc(size_t bytes)
{
    void *buf;

    if (bytes == 0) {
        bytes = 1;
    }
    return posix_memalign(&buf, BUF_ALIGN, bytes) == 0 ? buf : NULL;
}
