/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Points of a backup directory: its manifests, and the end of a run.
 *
 *     files of all disks     store_keep_disk
 *     POINT.json.pending     store_put_pending     the source keeps its
 *            |                                     new checkpoint
 *            +-- rename -->  POINT.json            store_finish_pending
 *            +-- unlink                            store_drop_pending
 *
 * A pending manifest that goes is unlinked durably before its files are: no
 * later run finishes a point that has lost some.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "store/store-priv.h"

#define ENDING  ".json"
#define PENDING ".json.pending"
/* Of all manifests together, so that no directory can take all memory. */
#define TEXTS_MAX (256 * MiB)

unsigned store_count(const struct store *s)
{
    return s->count;
}

const struct store_point *store_point(const struct store *s, unsigned i)
{
    return &s->points[i];
}

const struct store_point *store_pending(const struct store *s)
{
    return s->pending.name[0] ? &s->pending : NULL;
}

const struct store_point *store_latest(const struct store *s)
{
    return s->count > 0 ? &s->points[s->count - 1] : NULL;
}

static int compare_points(const void *a, const void *b)
{
    return strcmp(((const struct store_point *)a)->name,
                  ((const struct store_point *)b)->name);
}

const struct store_point *store_named(const struct store *s, const char *name)
{
    struct store_point key = {.manifest = NULL};

    if (strlen(name) != POINT_NAME_LEN) {
        return NULL;
    }
    if (strcmp(s->pending.name, name) == 0) {
        return &s->pending;
    }
    memcpy(key.name, name, POINT_NAME_MAX);
    return s->count > 0
               ? bsearch(&key, s->points, s->count, sizeof(key), compare_points)
               : NULL;
}

static void clear_point(struct store_point *p)
{
    manifest_free(p->manifest);
    free(p->why);
    *p = (struct store_point){.manifest = NULL};
}

static void clear_points(struct store *s)
{
    for (unsigned i = 0; i < s->count; i++) {
        clear_point(&s->points[i]);
    }
    free(s->points);
    s->points = NULL;
    s->count = 0;
    clear_point(&s->pending);
}

void store_close(struct store *s)
{
    if (!s) {
        return;
    }
    clear_points(s);
    for (unsigned i = 0; i < s->retireds; i++) {
        manifest_free(s->retired[i]);
    }
    free(s->retired);
    for (unsigned i = 0; i < s->folders; i++) {
        free(s->folder[i].disk);
        (void)close(s->folder[i].fd);
    }
    free(s->folder);
    json_decref(s->options);
    if (s->lock >= 0) {
        (void)!ftruncate(s->lock, 0);
        (void)close(s->lock);
    }
    if (s->dir >= 0) {
        (void)close(s->dir);
    }
    free(s->path);
    free(s);
}

/* --- Reading manifests --- */

/* Does the manifest say what its name and its place say? */
static int check_place(const struct store *s, const char *name,
                       const struct manifest *m, struct error **errp)
{
    if (strcmp(m->name, name) != 0) {
        return error_set(errp, EUCLEAN, "it is the manifest of %s", m->name);
    }
    if (strcmp(m->id, s->id) != 0) {
        return error_set(errp, EUCLEAN,
                         "it is the manifest of another directory, %s", m->id);
    }
    return 0;
}

static int parse_place(const struct store *s, const char *name,
                       const char *text, size_t length, struct manifest **mp,
                       struct error **errp)
{
    CLEANUP_MANIFEST struct manifest *m = NULL;
    int r = manifest_parse(text, length, &m, errp);

    r = r < 0 ? r : check_place(s, name, m, errp);
    if (r == 0) {
        *mp = m;
        m = NULL;
    }
    return r;
}

/* A manifest that is not right leaves the reason in @p.  Only that there is no
 * memory is an error. */
static int read_manifest(const struct store *s, const char *name,
                         const char *ending, uint64_t *texts,
                         struct store_point *p, struct error **errp)
{
    CLEANUP_ERROR struct error *err = NULL;
    CLEANUP_FREE char *text = NULL;
    char file[POINT_NAME_MAX + sizeof(PENDING)];
    size_t length = 0;

    (void)snprintf(file, sizeof(file), "%s%s", name, ending);
    int r = dir_get(s->dir, file, MANIFEST_MAX, &text, &length, &err);
    *texts += length;
    r = r < 0 ? r : parse_place(s, name, text, length, &p->manifest, &err);
    memcpy(p->name, name, POINT_NAME_MAX);
    if (r < 0) {
        p->why = strdup(error_message(err));
        return r == -ENOMEM || !p->why ? error_nomem(errp) : 0;
    }
    return 0;
}

struct listing {
    unsigned count;
    unsigned room;
    char (*names)[POINT_NAME_MAX];
    char pending[POINT_NAME_MAX]; /* the latest of them, or "" */
};

/* For dir_each. */
static int note_name(const char *name, void *opaque)
{
    struct listing *l = opaque;
    char point[POINT_NAME_MAX];

    if (strlen(name) <= POINT_NAME_LEN) {
        return 0;
    }
    memcpy(point, name, POINT_NAME_LEN);
    point[POINT_NAME_LEN] = '\0';
    if (!point_name_valid(point)) {
        return 0;
    }
    if (strcmp(name + POINT_NAME_LEN, PENDING) == 0 &&
        strcmp(point, l->pending) > 0) {
        memcpy(l->pending, point, POINT_NAME_MAX);
    }
    if (strcmp(name + POINT_NAME_LEN, ENDING) != 0) {
        return 0;
    }
    if (l->count == STORE_POINTS_MAX) {
        return 1;
    }
    if (l->count == l->room) {
        unsigned room = l->room ? 2 * l->room : 64;
        void *names = reallocarray(l->names, room, sizeof(l->names[0]));
        if (!names) {
            return 2;
        }
        l->names = names;
        l->room = room;
    }
    memcpy(l->names[l->count++], point, POINT_NAME_MAX);
    return 0;
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(a, b);
}

static int read_listed(struct store *s, struct listing *l, struct error **errp)
{
    uint64_t texts = 0;
    int r = 0;

    s->points = calloc(l->count + 1, sizeof(s->points[0]));
    if (!s->points) {
        return error_nomem(errp);
    }
    if (l->count > 0) {
        qsort(l->names, l->count, sizeof(l->names[0]), compare_names);
    }
    for (unsigned i = 0; r == 0 && i < l->count; i++) {
        s->count = i + 1;
        r = read_manifest(s, l->names[i], ENDING, &texts, &s->points[i], errp);
        if (texts > TEXTS_MAX) {
            return error_set(errp, EFBIG,
                             "'%s' has manifests of more than %d MiB", s->path,
                             (int)(TEXTS_MAX / MiB));
        }
    }
    /* One that has both names was copied while it was renamed. */
    if (r == 0 && l->pending[0] && !store_named(s, l->pending)) {
        r = read_manifest(s, l->pending, PENDING, &texts, &s->pending, errp);
    }
    return r;
}

int store_reload(struct store *s, struct error **errp)
{
    struct listing l = {.count = 0};

    clear_points(s);
    int r = dir_each(s->dir, note_name, &l, errp);
    if (r > 0) {
        r = r == 1 ? error_set(errp, EFBIG, "'%s' has more than %d points",
                               s->path, STORE_POINTS_MAX)
                   : error_nomem(errp);
    }
    r = r < 0 ? r : read_listed(s, &l, errp);
    free(l.names);
    return r;
}

/* --- Finding a point --- */

int store_find_point(const struct store *s, const char *word,
                     const struct store_point **pp, struct error **errp)
{
    CLEANUP_FREE const char **names = calloc(s->count + 1, sizeof(*names));
    unsigned found = 0;

    if (!names) {
        return error_nomem(errp);
    }
    for (unsigned i = 0; i < s->count; i++) {
        names[i] = s->points[i].name;
    }
    int r = point_name_find(names, s->count, word ? word : "latest", &found,
                            errp);
    if (r < 0) {
        error_prefix(errp, "'%s': ", s->path);
        return r;
    }
    const struct store_point *p = &s->points[found];
    if (!p->manifest) {
        return error_set(errp, EUCLEAN,
                         "'%s': the manifest of %s cannot be used: %s", s->path,
                         p->name, p->why);
    }
    *pp = p;
    return 0;
}

static const char *later(const char *a, const char *b)
{
    return strcmp(a, b) > 0 ? a : b;
}

int store_new_name(const struct store *s, const char *used, char *name,
                   struct error **errp)
{
    const struct store_point *last = store_latest(s);
    const char *gone = later(s->dropped, used);
    const char *after = later(later(last ? last->name : "", s->pending.name),
                              gone);

    return point_name_make(time(NULL), after[0] ? after : NULL, name) == 0
               ? 0
               : error_set(errp, ERANGE,
                           "there is no name for a point after %s",
                           after[0] ? after : "now");
}

/* The old manifest is kept: callers may have pointers into it. */
static int retire(struct store *s, struct manifest *m)
{
    struct manifest **all =
        m ? reallocarray(s->retired, s->retireds + 1, sizeof(*all)) : NULL;

    if (all) {
        s->retired = all;
        all[s->retireds++] = m;
    }
    return all || !m ? 0 : -ENOMEM;
}

static bool same_text(const struct manifest *a, const struct manifest *b)
{
    CLEANUP_FREE char *one = NULL;
    CLEANUP_FREE char *two = NULL;

    return a && b && manifest_text(a, &one, NULL) == 0 &&
           manifest_text(b, &two, NULL) == 0 && strcmp(one, two) == 0;
}

int store_refresh(struct store *s, const char *name, struct error **errp)
{
    const struct store_point *named = store_named(s, name);
    struct store_point now = {.manifest = NULL};
    uint64_t texts = 0;

    if (!named || named == &s->pending) {
        return 0;
    }
    struct store_point *p = &s->points[named - s->points];
    int r = read_manifest(s, name, ENDING, &texts, &now, errp);
    if (r == 0 && !same_text(p->manifest, now.manifest)) {
        r = retire(s, p->manifest) < 0 ? error_nomem(errp) : 0;
        if (r == 0) {
            free(p->why);
            *p = now;
            now = (struct store_point){.manifest = NULL};
        }
    }
    clear_point(&now);
    return r;
}

/* --- The end of a run --- */

int store_put_definition(struct store *s, const char *point, const char *text,
                         char *hash, struct error **errp)
{
    char file[POINT_NAME_MAX + sizeof(".xml")];
    int r = store_check_writable(s, errp);

    (void)snprintf(file, sizeof(file), "%s.xml", point);
    r = r < 0 ? r : hash_of(text, strlen(text), hash, errp);
    return r < 0 ? r : dir_put(s->dir, file, text, strlen(text), errp);
}

static int put_pending(struct store *s, const struct manifest *m,
                       struct error **errp)
{
    char file[POINT_NAME_MAX + sizeof(PENDING)];
    CLEANUP_FREE char *text = NULL;
    int r = store_check_writable(s, errp);

    r = r < 0 ? r : check_place(s, m->name, m, errp);
    if (r < 0) {
        return r;
    }
    if (s->pending.name[0] || store_named(s, m->name)) {
        return error_set(errp, EEXIST, "there is a point %s already",
                         s->pending.name[0] ? s->pending.name : m->name);
    }
    r = manifest_text(m, &text, errp);
    (void)snprintf(file, sizeof(file), "%s" PENDING, m->name);
    return r < 0 ? r : dir_put(s->dir, file, text, strlen(text), errp);
}

int store_put_pending(struct store *s, struct manifest *m, struct error **errp)
{
    int r = put_pending(s, m, errp);

    if (r < 0) {
        manifest_free(m);
        return r;
    }
    memcpy(s->pending.name, m->name, POINT_NAME_MAX);
    s->pending.manifest = m;
    return 0;
}

static int check_file(struct store *s, const char *disk, const char *point,
                      const char *ending, struct error **errp)
{
    CLEANUP_CLOSE int fd = -1;
    int r = store_open_file(s, disk, point, ending, &fd, NULL, errp);

    return r == -ENOENT
               ? error_set(errp, EUCLEAN, "point %s of '%s' lacks %s/%s.%s",
                           point, s->path, disk, point, ending)
               : r;
}

static int check_files(struct store *s, const struct manifest *m,
                       struct error **errp)
{
    int r = 0;

    for (unsigned i = 0; r == 0 && i < m->count; i++) {
        r = check_file(s, m->disks[i].name, m->name, "qcow2", errp);
        r = r < 0 ? r : check_file(s, m->disks[i].name, m->name, "sums", errp);
    }
    return r;
}

/* Give the pending point a place in the list. */
static int append_pending(struct store *s, struct error **errp)
{
    struct store_point *all = reallocarray(s->points, s->count + 1,
                                           sizeof(*all));

    if (!all) {
        return error_nomem(errp);
    }
    s->points = all;
    all[s->count++] = s->pending;
    s->pending = (struct store_point){.manifest = NULL};
    qsort(all, s->count, sizeof(*all), compare_points);
    return 0;
}

/* Also where an earlier try has renamed it, and could not flush. */
static int rename_pending(const struct store *s, const char *from,
                          const char *to, struct error **errp)
{
    return faccessat(s->dir, from, F_OK, AT_SYMLINK_NOFOLLOW) < 0 &&
                   errno == ENOENT &&
                   faccessat(s->dir, to, F_OK, AT_SYMLINK_NOFOLLOW) == 0
               ? dir_flush(s->dir, errp)
               : dir_rename(s->dir, from, to, errp);
}

int store_finish_pending(struct store *s, struct error **errp)
{
    char from[POINT_NAME_MAX + sizeof(PENDING)];
    char to[POINT_NAME_MAX + sizeof(ENDING)];
    int r = store_check_writable(s, errp);

    if (r < 0) {
        return r;
    }
    if (!s->pending.manifest) {
        return error_set(errp, s->pending.name[0] ? EUCLEAN : ENOENT,
                         "'%s' has no pending point: %s", s->path,
                         s->pending.why ? s->pending.why : "none was begun");
    }
    r = check_files(s, s->pending.manifest, errp);
    if (r < 0) {
        return r;
    }
    (void)snprintf(from, sizeof(from), "%s" PENDING, s->pending.name);
    (void)snprintf(to, sizeof(to), "%s" ENDING, s->pending.name);
    r = rename_pending(s, from, to, errp);
    return r < 0 ? r : append_pending(s, errp);
}

int store_drop_pending(struct store *s, struct error **errp)
{
    char file[POINT_NAME_MAX + sizeof(PENDING)];
    int r = store_check_writable(s, errp);

    if (r < 0 || !s->pending.name[0]) {
        return r;
    }
    (void)snprintf(file, sizeof(file), "%s" PENDING, s->pending.name);
    r = dir_remove(s->dir, file, errp);
    r = r < 0 ? r : dir_flush(s->dir, errp);
    if (r < 0) {
        return r;
    }
    memcpy(s->dropped, s->pending.name, sizeof(s->dropped));
    clear_point(&s->pending);
    return store_clean(s, NULL, errp);
}
