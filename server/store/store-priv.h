/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_STORE_STORE_PRIV_H
#define NBDELTA_SERVER_STORE_STORE_PRIV_H

/* Shared by store.c (open, lock, options), store-points.c (manifests), hold.c,
 * store-files.c (files of disks), store-clean.c and store-io.c (durable
 * files, without links). */
#include "store/store.h"

/* A folder of a disk that has been used. */
struct store_folder {
    char *disk;
    int fd;
};

struct store {
    char *path;
    int dir;
    int lock; /* -1: STORE_READ */
    bool writable;
    bool made; /* the directory, by store_open */
    char id[STORE_ID_MAX];
    json_t *options;

    unsigned count;
    struct store_point *points;
    struct store_point pending;   /* its name is "": there is none */
    char dropped[POINT_NAME_MAX]; /* the pending one that was; or "" */
    unsigned retireds;
    struct manifest **retired; /* by store_refresh */

    char resume[POINT_NAME_MAX]; /* parts of this one stay; or "" */

    unsigned folders;
    struct store_folder *folder;
};

/* -EPERM unless @s was opened for writing. */
int store_check_writable(const struct store *s, struct error **errp);

/* The descriptor of the folder of @disk, which stays the store's. */
int store_folder(struct store *s, const char *disk, int *fd,
                 struct error **errp);

/* --- store-io.c: files beneath a directory --- */

/* Open a regular file for reading, no link, without waiting for a pipe.
 * *size may be NULL. */
int dir_open_file(int dir, const char *name, int *fd, uint64_t *size,
                  struct error **errp);
int dir_get(int dir, const char *name, size_t max, char **bytes, size_t *length,
            struct error **errp);
/* Durable when it returns 0. */
int dir_put(int dir, const char *name, const void *bytes, size_t length,
            struct error **errp);
/* Rename, durably. */
int dir_rename(int dir, const char *from, const char *to, struct error **errp);
/* Remove a file, which need not be there.  Not yet durable. */
int dir_remove(int dir, const char *name, struct error **errp);
int dir_flush(int dir, struct error **errp);
int write_all(int fd, const void *bytes, size_t length);

/* Call @fn for each name in @dir but "." and "..", until it returns non-zero,
 * which is returned. */
int dir_each(int dir, int (*fn)(const char *name, void *opaque), void *opaque,
             struct error **errp);

/* A file that dir_put had not finished? */
bool is_unfinished(const char *name);

#endif /* NBDELTA_SERVER_STORE_STORE_PRIV_H */
