/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_NET_STAMP_H
#define NBDELTA_SERVER_NET_STAMP_H

/* A stamp of a file differs from a later one when the file at that path is
 * another file, or has been written. */
#include <stdbool.h>
#include <sys/stat.h>

struct stamp {
    struct timespec changed;
    dev_t dev;
    ino_t ino;
    off_t size; /* -1: there is no file that can be looked at */
};

static inline struct stamp stamp_of(const char *path)
{
    struct stamp s = {.size = -1};
    struct stat st;

    if (stat(path, &st) == 0) {
        s.changed = st.st_ctim;
        s.dev = st.st_dev;
        s.ino = st.st_ino;
        s.size = st.st_size;
    }
    return s;
}

static inline bool stamp_same(const struct stamp *a, const struct stamp *b)
{
    return a->changed.tv_sec == b->changed.tv_sec &&
           a->changed.tv_nsec == b->changed.tv_nsec && a->dev == b->dev &&
           a->ino == b->ino && a->size == b->size;
}

#endif /* NBDELTA_SERVER_NET_STAMP_H */
