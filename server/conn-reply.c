/* SPDX-License-Identifier: BSD-3-Clause */
/* Replies without data, and the heads of those with data. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>

#include "conn.h"
#include "nbdelta/bytes.h"
#include "proto.h"

uint32_t reply_errno(int r)
{
    switch (-r) {
    case 0:
        return 0;
    case EPERM:
    case EACCES:
    case EROFS:
        return NBD_EPERM;
    case ENOMEM:
        return NBD_ENOMEM;
    case EINVAL:
        return NBD_EINVAL;
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
        return NBD_ENOSPC;
    case EOVERFLOW:
        return NBD_EOVERFLOW;
    case ENOTSUP:
        return NBD_ENOTSUP;
    case ESHUTDOWN:
        return NBD_ESHUTDOWN;
    default:
        return NBD_EIO;
    }
}

size_t reply_put_chunk(unsigned char *to, const struct request *rq,
                       uint16_t flags, uint16_t type, uint32_t length)
{
    store_be32(to, NBD_STRUCTURED_REPLY_MAGIC);
    store_be16(to + 4, flags);
    store_be16(to + 6, type);
    memcpy(to + 8, rq->cookie, 8);
    store_be32(to + 16, length);
    return NBD_CHUNK_LEN;
}

size_t reply_put_simple(unsigned char *to, const struct request *rq, int r)
{
    store_be32(to, NBD_SIMPLE_REPLY_MAGIC);
    store_be32(to + 4, reply_errno(r));
    memcpy(to + 8, rq->cookie, 8);
    return NBD_SIMPLE_REPLY_LEN;
}

/* An error chunk with the text of the error. */
static size_t put_error(unsigned char *to, size_t room,
                        const struct request *rq, int r)
{
    const char *text = strerror(-r);
    size_t len = strlen(text);

    if (len > room - NBD_CHUNK_LEN - 6) {
        len = 0;
    }
    size_t at = reply_put_chunk(to, rq, NBD_REPLY_FLAG_DONE, NBD_REPLY_ERROR,
                                (uint32_t)(6 + len));
    store_be32(to + at, reply_errno(r));
    store_be16(to + at + 4, (uint16_t)len);
    memcpy(to + at + 6, text, len);
    return at + 6 + len;
}

void reply_simple(struct request *rq, int r, bool pooled)
{
    struct conn *c = rq->conn;
    unsigned char own[128];
    unsigned char *to = pooled ? own : conn_batch_room(c, sizeof(own));
    size_t len;

    if (!to) {
        return;
    }
    if (!c->structured) {
        len = reply_put_simple(to, rq, r);
    } else if (r < 0) {
        len = put_error(to, sizeof(own), rq, r);
    } else if (rq->type == NBD_CMD_READ) {
        len = reply_put_chunk(to, rq, NBD_REPLY_FLAG_DONE, NBD_REPLY_NONE, 0);
    } else {
        len = reply_put_simple(to, rq, 0);
    }
    if (pooled) {
        struct iovec v = { to, len };
        (void)conn_send(c, &v, 1, true);
    } else {
        conn_batch_commit(c, len);
    }
}
