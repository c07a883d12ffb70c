/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The chains of a backup directory, drawn: see points-tree.h.
 *
 *     manifests -> an entry for each disk of each point, sorted by the disk
 *               -> parents are found, files are looked at
 *               -> a tree of lines for each disk
 *
 * An increment belongs to the point that stands above it:
 *
 *     ,- 2026-11-27  full
 *     |- 2026-11-28  increment     over 2026-11-27
 *     `- 2026-11-29  increment     over 2026-11-28
 *     -- 2026-11-30  full          nothing is over it
 *
 * Where it is made over another point than that, it says so.
 */
#include "cli/points-tree.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/size.h"
#include "nbdelta/text.h"
#include "store/health.h"
#include "store/store.h"
#include "store/verified.h"
#include "store/verify.h"

#define TRIES 3 /* while files come and go */

enum state {
    STATE_GOOD,
    STATE_PENDING,
    STATE_NEEDS, /* it is good itself; what it is made over is not */
    STATE_PRUNED,
    STATE_MISSING, /* a file, or what it was made over */
    STATE_DAMAGED,
    STATE_LOST,
};

struct entry {
    const struct store_point *point;
    const struct manifest_disk *disk;
    struct entry *parent; /* in the same tree; NULL: none, or it is missing */
    uint64_t bytes;       /* of its files, on the storage */
    enum state state;
    char *why;        /* it is missing */
    int64_t verified; /* seconds since 1970; 0: never */
    bool wanted;      /* to be drawn */
};

struct tree {
    struct store *store;
    struct entry *entries; /* sorted by the disk's name, then by the point's */
    size_t count;
    bool missing; /* something is, and no prune tells why */
};

static void tree_empty(struct tree *t)
{
    for (size_t i = 0; i < t->count; i++) {
        free(t->entries[i].why);
    }
    free(t->entries);
    t->entries = NULL;
    t->count = 0;
    t->missing = false;
}

/* --- Gathering --- */

static int compare_entries(const void *a, const void *b)
{
    const struct entry *x = a;
    const struct entry *y = b;
    int order = strcmp(x->disk->name, y->disk->name);

    return order != 0 ? order : strcmp(x->point->name, y->point->name);
}

static void add_point(struct tree *t, const struct store_point *p)
{
    for (unsigned i = 0; p->manifest && i < p->manifest->count; i++) {
        t->entries[t->count++] = (struct entry){
            .point = p,
            .disk = &p->manifest->disks[i],
        };
    }
}

static int add_points(struct tree *t, struct error **errp)
{
    const struct store_point *pending = store_pending(t->store);
    size_t room = 1;

    for (unsigned i = 0; i < store_count(t->store); i++) {
        const struct manifest *m = store_point(t->store, i)->manifest;
        room += m ? m->count : 0;
    }
    room += pending && pending->manifest ? pending->manifest->count : 0;
    t->entries = calloc(room, sizeof(*t->entries));
    if (!t->entries) {
        return error_nomem(errp);
    }
    for (unsigned i = 0; i < store_count(t->store); i++) {
        add_point(t, store_point(t->store, i));
    }
    if (pending) {
        add_point(t, pending);
    }
    qsort(t->entries, t->count, sizeof(*t->entries), compare_entries);
    return 0;
}

static struct entry *find_parent(const struct tree *t, const struct entry *e)
{
    struct store_point point = {.manifest = NULL};
    struct entry key = {.point = &point, .disk = e->disk};

    (void)snprintf(point.name, sizeof(point.name), "%s", e->disk->parent);
    return point.name[0] == '\0' ? NULL
                                 : bsearch(&key, t->entries, t->count,
                                           sizeof(key), compare_entries);
}

static enum state state_of_files(const struct tree *t, const struct entry *e)
{
    const char *point = e->point->name;

    if (verified_damaged(t->store, point, e->disk->name)) {
        return verified_hopes(t->store, point, e->disk->name) ? STATE_DAMAGED
                                                              : STATE_LOST;
    }
    return e->point == store_pending(t->store)             ? STATE_PENDING
           : e->parent && e->parent->state > STATE_PENDING ? STATE_NEEDS
                                                           : STATE_GOOD;
}

/* Its parent comes before it, and has its state. */
static int look_at(struct tree *t, struct entry *e, struct error **errp)
{
    CLEANUP_ERROR struct error *why = NULL;
    struct verified v;

    e->parent = find_parent(t, e);
    verified_read(t->store, e->point->name, &v);
    e->verified = v.when;
    if (store_look_disk(t->store, e->point->name, e->disk, &e->bytes, &why) ==
        0) {
        e->state = state_of_files(t, e);
        return 0;
    }
    if (store_pruning(t->store) > 0) {
        e->state = STATE_PRUNED;
        return 0;
    }
    e->state = STATE_MISSING;
    e->why = strdup(error_message(why));
    t->missing = true;
    return e->why ? 0 : error_nomem(errp);
}

/* The point @name, and all that its disks are made over; NULL: all.  Parents
 * come before their children, so going backwards finds all of them. */
static int mark_wanted(struct tree *t, const char *name, struct error **errp)
{
    bool found = !name;

    for (size_t i = t->count; i-- > 0;) {
        struct entry *e = &t->entries[i];

        if (!name || strcmp(e->point->name, name) == 0) {
            e->wanted = found = true;
        }
        if (e->wanted && e->parent) {
            e->parent->wanted = true;
        }
    }
    return found
               ? 0
               : error_set(errp, ENOENT, "there is no point %s any more", name);
}

static int gather_once(struct tree *t, const char *name, struct error **errp)
{
    int r = add_points(t, errp);

    for (size_t i = 0; r == 0 && i < t->count; i++) {
        r = look_at(t, &t->entries[i], errp);
    }
    return r < 0 ? r : mark_wanted(t, name, errp);
}

static int gather(struct tree *t, const char *name, struct error **errp)
{
    int r = gather_once(t, name, errp);

    for (int i = 1; r == 0 && t->missing && i < TRIES; i++) {
        tree_empty(t);
        r = store_reload(t->store, errp);
        r = r < 0 ? r : gather_once(t, name, errp);
    }
    return r;
}

/* --- Drawing --- */

/* What stands before a point: is it made over the one above, and the one below
 * over it? */
static const char *branch(bool above, bool below, bool utf8)
{
    static const char *const all[2][2][2] = {
        {{"--", ",-"}, {"`-", "|-"}},
        {{"──", "┌─"}, {"└─", "├─"}},
    };

    return all[utf8][above][below];
}

static void print_time(int64_t when, FILE *f)
{
    char name[POINT_NAME_MAX];
    char shown[POINT_SHOWN_MAX];

    if (when > 0 && point_name_make(when, NULL, name) == 0) {
        point_name_show(name, shown);
        (void)fprintf(f, "verified %s", shown);
    } else {
        (void)fputs("never verified", f);
    }
}

static void print_state(const struct entry *e, FILE *f)
{
    CLEANUP_FREE char *why = e->why ? text_printable(e->why) : NULL;

    switch (e->state) {
    case STATE_GOOD:
        print_time(e->verified, f);
        break;
    case STATE_PENDING:
        (void)fputs("pending", f);
        break;
    case STATE_NEEDS:
        (void)fputs("NEEDS one that is damaged or missing", f);
        break;
    case STATE_PRUNED:
        (void)fputs("a prune works on it", f);
        break;
    case STATE_MISSING:
        (void)fprintf(f, "MISSING: %s", why ? why : "?");
        break;
    default:
        (void)fputs(e->state == STATE_LOST ? "LOST" : "DAMAGED", f);
        break;
    }
}

static void print_entry(const struct entry *e, bool above, bool below,
                        bool utf8, FILE *f)
{
    const char *reason = disk_reason_word(e->disk->reason);
    char shown[POINT_SHOWN_MAX];
    char bytes[32];
    char data[32];

    point_name_show(e->point->name, shown);
    (void)fprintf(f, "  %s %s  %-9s  %10s  %10s  ", branch(above, below, utf8),
                  shown, disk_kind_word(e->disk->kind),
                  size_human(e->bytes, bytes, sizeof(bytes)),
                  size_human(e->disk->written, data, sizeof(data)));
    print_state(e, f);
    if (reason) {
        (void)fprintf(f, "; %s", reason);
    }
    if (e->disk->parent[0] && !above) {
        point_name_show(e->disk->parent, shown);
        (void)fprintf(f, ", over %s", shown);
    }
    (void)fputc('\n', f);
}

/* The next wanted one of the same disk from @at on, or NULL. */
static struct entry *next_of(const struct tree *t, const char *disk, size_t *at)
{
    while (*at < t->count && strcmp(t->entries[*at].disk->name, disk) == 0) {
        struct entry *e = &t->entries[(*at)++];

        if (e->wanted) {
            return e;
        }
    }
    return NULL;
}

/* The tree of one disk, which begins with entry @at.  Returns where the next
 * one begins. */
static size_t print_disk(const struct tree *t, size_t at, bool utf8, FILE *f)
{
    const char *disk = t->entries[at].disk->name;
    const struct entry *above = NULL;
    const struct entry *e = next_of(t, disk, &at);
    CLEANUP_FREE char *name = text_printable(disk);

    for (uint64_t size = UINT64_MAX; e;) {
        const struct entry *below = next_of(t, disk, &at);
        char text[32];

        if (e->disk->size != size) {
            size = e->disk->size;
            (void)fprintf(f, "%s%s, %s\n", above ? "" : "\n", name ? name : "?",
                          size_human(size, text, sizeof(text)));
        }
        print_entry(e, above && e->parent == above, below && below->parent == e,
                    utf8, f);
        above = e;
        e = below;
    }
    return at;
}

/* Points without a manifest belong to no tree. */
static void print_unusable(const struct store_point *p, FILE *f)
{
    char shown[POINT_SHOWN_MAX];

    if (!p->manifest) {
        CLEANUP_FREE char *why = text_printable(p->why);

        point_name_show(p->name, shown);
        (void)fprintf(f, "\n%s  cannot be used: %s\n", shown, why ? why : "?");
    }
}

static void print_head(const struct tree *t, const char *point, FILE *f)
{
    CLEANUP_FREE char *path = text_printable(store_path(t->store));
    unsigned count = store_count(t->store);
    uint64_t bytes = 0;
    char shown[POINT_SHOWN_MAX];
    char size[32];

    for (size_t i = 0; i < t->count; i++) {
        bytes += t->entries[i].wanted ? t->entries[i].bytes : 0;
    }
    (void)fprintf(f, "%s: ", path ? path : "?");
    if (point) {
        point_name_show(point, shown);
        (void)fprintf(f, "%s and what it needs", shown);
    } else {
        (void)fprintf(f, "%u point%s", count, count == 1 ? "" : "s");
    }
    (void)fprintf(f, ", %s on the storage\n\n",
                  size_human(bytes, size, sizeof(size)));
    (void)fprintf(f, "     %-20s  %-9s  %10s  %10s  %s\n", "Point", "Kind",
                  "Takes", "Data", "State");
}

int points_tree(struct store *s, const char *point, bool utf8, FILE *f,
                struct error **errp)
{
    struct tree t = {.store = s};
    int r = gather(&t, point, errp);

    if (r == 0) {
        print_head(&t, point, f);
        for (size_t at = 0; at < t.count;) {
            at = print_disk(&t, at, utf8, f);
        }
        for (unsigned i = 0; !point && i < store_count(s); i++) {
            print_unusable(store_point(s, i), f);
        }
        if (!point && store_pending(s)) {
            print_unusable(store_pending(s), f);
        }
    }
    tree_empty(&t);
    return r;
}
