/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_CORE_DOOR_H
#define NBDELTA_CORE_DOOR_H

/*
 * Files are looked at first, and what was looked at is opened
 * ==========================================================
 *
 * A name can lead elsewhere a moment later: a user who may write to a directory
 * can exchange the files in it.  So a file is found once, as a descriptor that
 * does nothing to it (O_PATH); all that has to be known of it is asked of that
 * descriptor, and it is opened by way of it.  Where there is no /proc, the name
 * is opened again, and counts only if it still leads to the same file.
 */
#include <sys/stat.h>

#include "nbdelta/types.h"

struct door {
    int fd;  /* of the file, good for nothing but to look at it */
    int dir; /* where @name is; AT_FDCWD: the name's last part may be a link */
    char *name;
    struct stat st;
};

/* Find the file at @filename, links followed.  0, or -errno and nothing to
 * close. */
int door_find(struct door *d, const char *filename);

/* As door_find(), but what is found may be a link itself. */
int door_find_link(struct door *d, const char *filename);

/* Find @path below @root, a directory, without following any link on the way:
 * -ELOOP, -ENOTDIR.  @path is what realpath gives, without the slash at its
 * beginning. */
int door_find_below(struct door *d, int root, const char *path);

/* A new descriptor for the file, with flags of open(2); or -errno. */
int door_open(const struct door *d, int flags);

void door_close(struct door *d);

/* Are both the same file? */
static inline bool door_same(const struct stat *a, const struct stat *b)
{
    return a->st_dev == b->st_dev && a->st_ino == b->st_ino &&
           (a->st_mode & S_IFMT) == (b->st_mode & S_IFMT);
}

#endif /* NBDELTA_CORE_DOOR_H */
