/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * How a backup directory is: see health.h.
 *
 * Nothing is locked.  While a prune works, manifests and files need not agree,
 * so what a point lacks counts only when no journal was there before and after:
 *
 *     journal?  -->  manifests again  -->  files  -->  journal?
 *        ^                                                |
 *        +------------- something is missing -------------+
 */
#include "store/health.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/text.h"
#include "store/store-priv.h"
#include "store/verify.h"

#define TRIES 3

static int64_t later(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

static void note(struct store_health *h, const char *point, const char *what)
{
    if (h->first[0] == '\0') {
        (void)snprintf(h->first, sizeof(h->first), "point %s: %s", point, what);
        text_make_printable(h->first);
    }
}

int64_t store_pruning(const struct store *s)
{
    struct stat st;

    return fstatat(s->dir, STORE_JOURNAL, &st, AT_SYMLINK_NOFOLLOW) < 0
               ? 0
               : later(st.st_mtime, 1);
}

/* Is the file there?  Add what it takes. */
static int look_for_file(struct store *s, const char *disk, const char *point,
                         const char *ending, uint64_t *bytes,
                         struct error **errp)
{
    CLEANUP_CLOSE int fd = -1;
    struct stat st;
    int r = store_open_file(s, disk, point, ending, &fd, NULL, errp);

    if (r == 0 && fstat(fd, &st) == 0) {
        *bytes += (uint64_t)st.st_blocks * 512;
    }
    return r;
}

int store_look_disk(struct store *s, const char *point,
                    const struct manifest_disk *d, uint64_t *bytes,
                    struct error **errp)
{
    const struct manifest_disk *parent = NULL;

    *bytes = 0;
    int r = look_for_file(s, d->name, point, "qcow2", bytes, errp);
    r = r < 0 ? r : look_for_file(s, d->name, point, "sums", bytes, errp);
    return r < 0 ? r : store_parent(s, d, &parent, errp);
}

static void look_at_files(struct store *s, const struct store_point *p,
                          struct store_health *h)
{
    for (unsigned i = 0; i < p->manifest->count; i++) {
        CLEANUP_ERROR struct error *why = NULL;
        uint64_t bytes;

        if (store_look_disk(s, p->name, &p->manifest->disks[i], &bytes, &why) <
            0) {
            h->incomplete++;
            note(h, p->name, error_message(why));
            return;
        }
    }
}

static void look_at_note(const struct store *s, const struct store_point *p,
                         struct store_health *h)
{
    struct verified v;

    verified_read(s, p->name, &v);
    int64_t when = later(p->manifest->time, v.when);
    if (h->points == 1 || when < h->verified) {
        h->verified = when;
    }
    h->damaged += v.damages > 0;
    h->damages += v.damages;
    if (v.damages > 0) {
        note(h, p->name, "it is damaged");
    }
}

static void look_at_point(struct store *s, const struct store_point *p,
                          struct store_health *h)
{
    if (!p->manifest) {
        h->unreadable++;
        note(h, p->name, p->why);
        return;
    }
    h->oldest = h->points == 0 ? p->manifest->time : h->oldest;
    h->latest = p->manifest->time;
    h->points++;
    look_at_note(s, p, h);
    if (h->pruning == 0) {
        look_at_files(s, p, h);
    }
}

static void look(struct store *s, struct store_health *h)
{
    *h = (struct store_health){.pruning = store_pruning(s)};
    h->pending = store_pending(s) != NULL;
    for (unsigned i = 0; i < store_count(s); i++) {
        look_at_point(s, store_point(s, i), h);
    }
}

int store_look(struct store *s, struct store_health *h, struct error **errp)
{
    int r = 0;

    look(s, h);
    for (int i = 1; r == 0 && h->incomplete + h->unreadable > 0 && i < TRIES;
         i++) {
        r = store_reload(s, errp);
        if (r == 0) {
            look(s, h);
        }
    }
    return r;
}
