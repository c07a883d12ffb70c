/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_VM_QEMU_IO_PARSE_H
#define NBDELTA_SERVER_VM_QEMU_IO_PARSE_H

/* Commands of qemu-io, from words to what shall be done.  Thread-safe: no
 * getopt, because the monitors' threads parse at the same time. */
#include "nbdelta/types.h"

enum io_op {
    IO_NOTHING, /* an empty command */
    IO_READ,
    IO_WRITE,
    IO_DISCARD,
    IO_FLUSH,
    IO_TRUNCATE, /* to offset */
    IO_LENGTH,
    IO_INFO,
    IO_ALLOC,
    IO_MAP,
    IO_SLEEP, /* bytes: milliseconds */
    IO_AIO_FLUSH,
    IO_BREAK, /* of blkdebug, as the next three */
    IO_REMOVE_BREAK,
    IO_RESUME,
    IO_WAIT_BREAK,
};

struct io_args {
    enum io_op op;
    const char *verb; /* its full name; static */
    bool aio;         /* goes on alone */
    bool zero;        /* write: zeroes, by their own request */
    bool quiet;       /* no report */
    bool dump;        /* read: print the bytes */
    bool terse;       /* report in columns */
    uint64_t offset;
    uint64_t bytes;
    int pattern;         /* -1: none was given */
    unsigned flags;      /* enum req_flags */
    uint64_t check_from; /* read: where the pattern is to be, in the request */
    uint64_t check_len;
    const char *file; /* write: its bytes, repeated; NULL: pattern */
    const char *event;
    const char *tag;
    char *text; /* what the strings above are in */
};

/* Free @out by io_args_clear() in any case.  -EINVAL: a word is wrong,
 * said as qemu-io does. */
int io_parse(const char *command, struct io_args *out, struct error **errp);
void io_args_clear(struct io_args *a);

#endif /* NBDELTA_SERVER_VM_QEMU_IO_PARSE_H */
