/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Points are held while they are read: see store_hold.
 *
 *     reader   lock POINT.json, shared  --> is it that file still?
 *                                       --> is a prune's journal about it?
 *                                       --> read it again
 *     prune    lock alone: POINT.json of all points that it changes,
 *              journal, files, manifests (new files), journal away, unlock
 *
 * A prune gives manifests new files, so a lock of the old one says nothing.
 * While a point is held, no point below it changes either: a prune that
 * changes a point's file locks the ones that were made over it, too.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "store/store-priv.h"

#define JOURNAL_MAX (4 * MiB)
#define TRIES       20

static int lock_manifest(const struct store *s, const char *point,
                         const char *file, bool alone, int *fd,
                         struct error **errp)
{
    CLEANUP_CLOSE int f = -1;
    int r = dir_open_file(s->dir, file, &f, NULL, errp);

    if (r < 0) {
        return r;
    }
    if (flock(f, (alone ? LOCK_EX : LOCK_SH) | LOCK_NB) < 0) {
        return errno == EWOULDBLOCK
                   ? error_set(errp, EBUSY, "point %s of '%s' is %s", point,
                               s->path, alone ? "being read" : "being pruned")
                   : error_set(errp, errno, "cannot lock point %s of '%s': %s",
                               point, s->path, strerror(errno));
    }
    *fd = f;
    f = -1;
    return 0;
}

/* --- Is a prune's journal about it? --- */

/* Of a manifest: was one of its disks made over @point? */
static bool is_over(const struct manifest *m, const char *point)
{
    for (unsigned i = 0; m && i < m->count; i++) {
        if (strcmp(m->disks[i].parent, point) == 0) {
            return true;
        }
    }
    return false;
}

/* Does it name the point, or what the point was made over?  Whether it makes
 * sense is prune's question. */
static bool journal_touches(const struct store *s, const json_t *j,
                            const char *point)
{
    CLEANUP_MANIFEST struct manifest *gone = NULL;
    const char *text = json_string_value(json_object_get(j, "manifest"));
    const json_t *next = json_object_get(j, "next");
    const struct store_point *p = store_named(s, point);
    const struct manifest *m = p ? p->manifest : NULL;

    if (text && manifest_parse(text, strlen(text), &gone, NULL) == 0 &&
        (strcmp(gone->name, point) == 0 || is_over(m, gone->name))) {
        return true;
    }
    for (size_t i = 0; i < json_array_size(next); i++) {
        const char *name = json_string_value(json_array_get(next, i));

        if (name && (strcmp(name, point) == 0 || is_over(m, name))) {
            return true;
        }
    }
    return false;
}

/* A journal that cannot be read says nothing of any point: what it has spoiled
 * is found by hashes. */
static int check_journal(const struct store *s, const char *point,
                         struct error **errp)
{
    CLEANUP_FREE char *text = NULL;
    size_t length = 0;

    if (dir_get(s->dir, STORE_JOURNAL, JOURNAL_MAX, &text, &length, NULL) < 0) {
        return 0;
    }
    CLEANUP_JSON json_t *j = json_loadb(text, length, JSON_REJECT_DUPLICATES,
                                        NULL);
    return j && journal_touches(s, j, point)
               ? error_set(errp, EBUSY,
                           "point %s of '%s' is being changed by a prune that "
                           "did not end: 'nbdelta prune' or 'nbdelta backup' "
                           "goes on with it",
                           point, s->path)
               : 0;
}

/* --- --- */

/* Is the locked file the one of this name? */
static bool is_file(const struct store *s, const char *file, int fd)
{
    struct stat is;
    struct stat was;

    return fstatat(s->dir, file, &is, AT_SYMLINK_NOFOLLOW) == 0 &&
           fstat(fd, &was) == 0 && is.st_dev == was.st_dev &&
           is.st_ino == was.st_ino;
}

int store_hold(struct store *s, const char *point, bool alone, int *fd,
               struct error **errp)
{
    char file[POINT_NAME_MAX + 8];

    (void)snprintf(file, sizeof(file), "%s.json", point);
    for (int i = 0; i < TRIES; i++) {
        CLEANUP_CLOSE int f = -1;
        int r = lock_manifest(s, point, file, alone, &f, errp);

        if (r == 0 && !is_file(s, file, f)) {
            continue;
        }
        if (r == 0 && !alone) {
            /* With the directory's lock, manifests are as they were read. */
            r = s->writable ? 0 : store_refresh(s, point, errp);
            r = r < 0 ? r : check_journal(s, point, errp);
        }
        if (r == 0) {
            *fd = f;
            f = -1;
        }
        return r;
    }
    return error_set(errp, EBUSY, "point %s of '%s' changes all the time",
                     point, s->path);
}

/* --- With all that it was made over --- */

void holds_release(struct holds *h)
{
    for (unsigned i = 0; i < h->count; i++) {
        (void)close(h->fds[i]);
    }
    free(h->fds);
    *h = (struct holds){.count = 0};
}

int holds_add(struct store *s, const char *point, bool alone, struct holds *h,
              struct error **errp)
{
    int *all = reallocarray(h->fds, h->count + 1, sizeof(*all));

    if (!all) {
        return error_nomem(errp);
    }
    h->fds = all;
    int r = store_hold(s, point, alone, &all[h->count], errp);
    h->count += r == 0;
    return r;
}

/* Parents are older, so one pass from the newest finds them all. */
int store_hold_chain(struct store *s, const char *point, struct holds *h,
                     struct error **errp)
{
    CLEANUP_FREE bool *wanted = calloc(s->count + 1, sizeof(*wanted));
    int r = wanted ? 0 : error_nomem(errp);

    for (unsigned i = s->count; r == 0 && i > 0; i--) {
        const struct store_point *p = &s->points[i - 1];

        if (!wanted[i - 1] && strcmp(p->name, point) != 0) {
            continue;
        }
        r = holds_add(s, p->name, false, h, errp);
        for (unsigned k = 0; r == 0 && p->manifest && k < p->manifest->count;
             k++) {
            const struct store_point *below =
                store_named(s, p->manifest->disks[k].parent);

            if (below && below != &s->pending) {
                wanted[below - s->points] = true;
            }
        }
    }
    return r;
}
