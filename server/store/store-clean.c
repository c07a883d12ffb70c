/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What a killed run has left in a backup directory goes: files of our names
 * that belong to no point.
 *
 *     DIR/tmp.PID.N                         always
 *     DIR/POINT.xml, .verified, .json.pending     POINT is no point
 *     DIR/DISK/POINT.qcow2, .sums                 the same, and no parent
 *     DIR/DISK/POINT.qcow2.part     always, but of the point that
 * store_resume_get tells of DIR/DISK/POINT.sums.part      always
 *     DIR/resume.json               of that: never
 *
 * A point whose manifest cannot be read is a point: its files stay.  All else
 * in the directory is somebody else's.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "store/store-priv.h"

struct cleaning {
    struct store *store;
    int dir; /* that is being read */
    unsigned removed;
    struct error **errp;
};

/* Does any manifest need files of @point? */
static bool is_needed(const struct store *s, const char *point)
{
    if (store_named(s, point)) {
        return true;
    }
    for (unsigned i = 0; i < s->count; i++) {
        const struct manifest *m = s->points[i].manifest;

        for (unsigned k = 0; m && k < m->count; k++) {
            if (strcmp(m->disks[k].parent, point) == 0) {
                return true;
            }
        }
    }
    return false;
}

/* "POINT.ENDING": the point, and the ending without its dot.  False: it has
 * another form. */
static bool split(const char *name, char point[POINT_NAME_MAX],
                  const char **ending)
{
    if (strlen(name) <= POINT_NAME_LEN || name[POINT_NAME_LEN] != '.') {
        return false;
    }
    memcpy(point, name, POINT_NAME_LEN);
    point[POINT_NAME_LEN] = '\0';
    *ending = name + POINT_NAME_LEN + 1;
    return point_name_valid(point);
}

static bool is_one_of(const char *word, const char *const *words, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (strcmp(word, words[i]) == 0) {
            return true;
        }
    }
    return false;
}

static int remove_name(struct cleaning *c, const char *name)
{
    int r = dir_remove(c->dir, name, c->errp);

    c->removed += r == 0;
    return r;
}

/* For dir_each, of DIR. */
static int clean_name(const char *name, void *opaque)
{
    static const char *const endings[] = {"xml", "verified", "json.pending"};
    struct cleaning *c = opaque;
    char point[POINT_NAME_MAX];
    const char *ending;

    if (is_unfinished(name)) {
        return remove_name(c, name);
    }
    return split(name, point, &ending) &&
                   is_one_of(ending, endings, ARRAY_SIZE(endings)) &&
                   !store_named(c->store, point)
               ? remove_name(c, name)
               : 0;
}

/* For dir_each, of a disk's folder. */
static int clean_file(const char *name, void *opaque)
{
    static const char *const parts[] = {"qcow2.part", "sums.part"};
    static const char *const endings[] = {"qcow2", "sums"};
    struct cleaning *c = opaque;
    char point[POINT_NAME_MAX];
    const char *ending;

    if (!split(name, point, &ending)) {
        return 0;
    }
    if (strcmp(ending, "qcow2.part") == 0 &&
        strcmp(point, c->store->resume) == 0) {
        return 0;
    }
    return is_one_of(ending, parts, ARRAY_SIZE(parts)) ||
                   (is_one_of(ending, endings, ARRAY_SIZE(endings)) &&
                    !is_needed(c->store, point))
               ? remove_name(c, name)
               : 0;
}

static int flush_removed(const struct cleaning *c)
{
    return c->removed > 0 ? dir_flush(c->dir, c->errp) : 0;
}

/* For dir_each, of DIR: what is no folder is no disk. */
static int clean_folder(const char *name, void *opaque)
{
    struct cleaning *c = opaque;
    CLEANUP_CLOSE int fd = -1;

    if (disk_name_check(name, NULL) < 0 ||
        (fd = openat(c->store->dir, name,
                     O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_NONBLOCK |
                         O_CLOEXEC)) < 0) {
        return 0;
    }
    struct cleaning in = {.store = c->store, .dir = fd, .errp = c->errp};
    int r = dir_each(fd, clean_file, &in, c->errp);
    r = r < 0 ? r : flush_removed(&in);
    c->removed += in.removed;
    return r;
}

int store_clean(struct store *s, unsigned *removed, struct error **errp)
{
    struct cleaning c = {.store = s, .dir = s->dir, .errp = errp};
    int r = store_check_writable(s, errp);

    if (r == 0 &&
        faccessat(s->dir, STORE_JOURNAL, F_OK, AT_SYMLINK_NOFOLLOW) < 0 &&
        errno == ENOENT) {
        r = dir_each(s->dir, clean_name, &c, errp);
        r = r < 0 ? r : flush_removed(&c);
        r = r < 0 ? r : dir_each(s->dir, clean_folder, &c, errp);
    }
    if (removed) {
        *removed = c.removed;
    }
    return r;
}
