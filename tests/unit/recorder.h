/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_TESTS_RECORDER_H
#define NBDELTA_TESTS_RECORDER_H

/*
 * A protocol driver that records every write and flush.
 *
 * Two files can be recorded in one log: what is at DATA_AT of the disk is the
 * second one, a data file, with flushes of its own.
 *
 * The first file can honour FUA (rec.fua): what is written so is there.  Such a
 * write is a flush of its own, too, which can fail.
 *
 * A request can be made to fail (rec_fail).  What was written before a flush
 * that has failed may be lost although a later one succeeds.
 */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/flush.h"
#include "core/graph.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/image.h"
#include "nbdelta/secret.h"
#include "util/iov.h"

#ifndef DISK_MAX /* a crash is a copy of it all */
#define DISK_MAX (64 * MiB)
#endif
#define DATA_AT (DISK_MAX / 2)
#define LOG_MAX 65536

struct record {
    uint64_t offset;
    uint64_t bytes; /* 0: a flush, of the file at that offset */
    unsigned char *data;
    bool failed; /* a flush, that was not done */
    bool fua;    /* it is durable */
};

enum fault_kind { FAULT_WRITE, FAULT_FLUSH, FAULT_READ };

struct fault {
    enum fault_kind kind;
    unsigned countdown; /* the request that fails is the last of so many; 0:
                           none does */
    int error;          /* negative */
    bool done;          /* it is done all the same */
    bool from;          /* and so do all that follow, of its kind */
};

struct recorder {
    mutex_t lock; /* of the log and the disk */
    unsigned char *disk;
    bool garbage;  /* what was never written does not read as zeroes */
    bool has_data; /* there are two files */
    bool encrypted;
    bool fua;
    unsigned fuas; /* such writes */
    struct record log[LOG_MAX];
    unsigned count;
    uint64_t top; /* nothing was written behind it */
    struct fault fault;
    void (*before_write)(void); /* or NULL; set while no request runs */
    unsigned char *flushed; /* or NULL.  Else a flush that fails makes the disk
                               read as it was at the last one that did not */
    bool keeps;             /* no: it reads as it is */
};

static struct recorder rec;

/* Until rec_fail((struct fault){0}). */
static inline void rec_fail(struct fault f)
{
    mutex_lock(&rec.lock);
    rec.fault = f;
    mutex_unlock(&rec.lock);
}

/* What a request has to return; *done says whether to do it. */
static inline int rec_fault(enum fault_kind kind, bool *done)
{
    struct fault *f = &rec.fault;

    *done = true;
    if (f->countdown == 0 || f->kind != kind) {
        return 0;
    }
    if (f->countdown > 1) {
        f->countdown--;
        return 0;
    }
    if (!f->from) {
        f->countdown = 0;
    }
    *done = f->done;
    return f->error;
}

static inline int rec_preadv(struct node *n, uint64_t offset, uint64_t bytes,
                             const struct iovec *iov, int cnt, unsigned flags)
{
    (void)n;
    (void)flags;
    ck_assert_uint_le(offset + bytes, DISK_MAX);
    mutex_lock(&rec.lock);
    bool done;
    int error = rec_fault(FAULT_READ, &done);
    iov_from_buf(iov, cnt, 0, rec.disk + offset, bytes);
    mutex_unlock(&rec.lock);
    return error;
}

static inline struct record *next_record(void)
{
    ck_assert_uint_lt(rec.count, LOG_MAX);
    return &rec.log[rec.count++];
}

/* The write is to be durable.  Returns what its flush has to return. */
static inline int make_durable(struct record *r)
{
    int error = rec_fault(FAULT_FLUSH, &r->fua);

    rec.fuas++;
    if (rec.flushed && r->fua) {
        memcpy(rec.flushed + r->offset, r->data, r->bytes);
    } else if (rec.flushed && !rec.keeps) {
        memcpy(rec.disk, rec.flushed, DISK_MAX);
    }
    return error;
}

static inline int rec_write(uint64_t offset, uint64_t bytes,
                            const struct iovec *iov, int cnt, unsigned flags)
{
    ck_assert_uint_le(offset + bytes, DISK_MAX);
    if (rec.before_write) {
        rec.before_write();
    }
    mutex_lock(&rec.lock);
    bool done;
    int error = rec_fault(FAULT_WRITE, &done);
    if (done) {
        struct record *r = next_record();
        *r = (struct record){offset, bytes, malloc(bytes), false, false};
        ck_assert_ptr_nonnull(r->data);
        iov_to_buf(iov, cnt, 0, r->data, bytes);
        memcpy(rec.disk + offset, r->data, bytes);
        rec.top = max_u64(rec.top, offset + bytes);
        if (flags & REQ_FUA) {
            int lost = make_durable(r);
            error = error < 0 ? error : lost;
        }
    }
    mutex_unlock(&rec.lock);
    return error;
}

static inline int rec_pwritev(struct node *n, uint64_t offset, uint64_t bytes,
                              const struct iovec *iov, int cnt, unsigned flags)
{
    struct flush_run run;

    if (!(flags & REQ_FUA)) {
        return rec_write(offset, bytes, iov, cnt, flags);
    }
    node_flush_begin(n, &run);
    int r = rec_write(offset, bytes, iov, cnt, flags);
    node_flush_end(n, &run, r);
    return r;
}

static inline int flush_at(uint64_t offset)
{
    mutex_lock(&rec.lock);
    bool done;
    int error = rec_fault(FAULT_FLUSH, &done);
    if (rec.flushed && done) {
        memcpy(rec.flushed, rec.disk, DISK_MAX);
    } else if (rec.flushed && !rec.keeps) {
        memcpy(rec.disk, rec.flushed, DISK_MAX);
    }
    *next_record() = (struct record){.offset = offset, .failed = !done};
    mutex_unlock(&rec.lock);
    return error;
}

static inline int rec_flush(struct node *n)
{
    (void)n;
    return flush_at(0);
}

static inline void rec_limits(struct node *n, struct limits *lim)
{
    (void)n;
    lim->grows_zero = !rec.garbage;
}

static inline int rec_data_preadv(struct node *n, uint64_t offset,
                                  uint64_t bytes, const struct iovec *iov,
                                  int cnt, unsigned flags)
{
    return rec_preadv(n, DATA_AT + offset, bytes, iov, cnt, flags);
}

static inline int rec_data_pwritev(struct node *n, uint64_t offset,
                                   uint64_t bytes, const struct iovec *iov,
                                   int cnt, unsigned flags)
{
    return rec_pwritev(n, DATA_AT + offset, bytes, iov, cnt, flags);
}

static inline int rec_data_flush(struct node *n)
{
    (void)n;
    return flush_at(DATA_AT);
}

static const struct driver data_recorder_driver = {
    .name = "data-recorder",
    .is_protocol = true,
    .limits = rec_limits,
    .preadv = rec_data_preadv,
    .pwritev = rec_data_pwritev,
    .flush = rec_data_flush,
};

static const struct driver recorder_driver = {
    .name = "recorder",
    .is_protocol = true,
    .limits = rec_limits,
    .preadv = rec_preadv,
    .pwritev = rec_pwritev,
    .flush = rec_flush,
};

static const struct driver fua_recorder_driver = {
    .name = "fua-recorder",
    .is_protocol = true,
    .flags_write = REQ_FUA,
    .limits = rec_limits,
    .preadv = rec_preadv,
    .pwritev = rec_pwritev,
    .flush = rec_flush,
};

static inline const struct driver *rec_driver(void)
{
    return rec.fua ? &fua_recorder_driver : &recorder_driver;
}

#endif /* NBDELTA_TESTS_RECORDER_H */
