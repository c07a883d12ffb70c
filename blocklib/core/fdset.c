/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Sets of descriptors: the table of a graph.
 *
 *   set 2 --- fd 11 (O_RDONLY)   "image:r"   1 use
 *         `-- fd 12 (O_RDWR)     "image:rw"  0 uses
 *         `-- fd -1 (removed)                1 use: a node has a duplicate
 *
 * A descriptor that is removed is closed at once.  Its entry, and the set, stay
 * as long as nodes have duplicates of it.
 */
#include "core/fdset.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/graph-priv.h"
#include "nbdelta/error.h"

#define PREFIX "/dev/fdset/"

struct set {
    struct list in_table;
    int64_t id;
    struct list fds; /* in the order in which they came */
};

struct fdset_use {
    struct list in_set;
    struct set *set;
    int fd; /* -1: it was removed */
    unsigned uses;
    char *note;
};

void fdset_table_init(struct fdset_table *t)
{
    mutex_init(&t->lock, LOCK_FDSETS, NULL);
    list_init(&t->list);
    t->fds = 0;
}

static struct set *find_set(struct fdset_table *t, int64_t id) REQUIRES(t->lock)
{
    list_for_each (at, &t->list) {
        struct set *s = list_entry(at, struct set, in_table);

        if (s->id == id) {
            return s;
        }
    }
    return NULL;
}

static void drop_if_idle(struct fdset_use *u)
{
    if (u->fd < 0 && u->uses == 0) {
        list_remove(&u->in_set);
        free(u->note);
        free(u);
    }
}

static void drop_if_empty(struct set *s)
{
    if (list_empty(&s->fds)) {
        list_remove(&s->in_table);
        free(s);
    }
}

static void take_out(struct fdset_table *t, struct fdset_use *u)
    REQUIRES(t->lock)
{
    (void)close(u->fd);
    u->fd = -1;
    t->fds--;
    drop_if_idle(u);
}

void fdset_table_destroy(struct fdset_table *t)
{
    mutex_lock(&t->lock);
    list_for_each_safe (at, &t->list) {
        struct set *s = list_entry(at, struct set, in_table);

        list_for_each_safe (l, &s->fds) {
            struct fdset_use *u = list_entry(l, struct fdset_use, in_set);

            if (u->fd >= 0) {
                take_out(t, u);
            }
        }
        drop_if_empty(s);
    }
    mutex_unlock(&t->lock);
    mutex_destroy(&t->lock);
}

/* --- What users do --- */

/* The set @id, made where there is none; -1: a new one. */
static struct set *get_set(struct fdset_table *t, int64_t id) REQUIRES(t->lock)
{
    struct list *before = &t->list;
    int64_t free_id = 0;

    if (id >= 0 && find_set(t, id)) {
        return find_set(t, id);
    }
    list_for_each (at, &t->list) {
        int64_t other = list_entry(at, struct set, in_table)->id;

        if (id < 0 ? other != free_id : other > id) {
            before = at;
            break;
        }
        free_id++;
    }
    struct set *s = calloc(1, sizeof(*s));
    if (s) {
        s->id = id < 0 ? free_id : id;
        list_init(&s->fds);
        list_insert_before(before, &s->in_table);
    }
    return s;
}

static int add_fd(struct fdset_table *t, int64_t id, int fd, char *note,
                  int64_t *idp, struct error **errp) REQUIRES(t->lock)
{
    if (t->fds == FDSET_FDS_MAX) {
        return error_set(errp, EMFILE,
                         "there are %d descriptors in sets already",
                         FDSET_FDS_MAX);
    }
    struct fdset_use *u = calloc(1, sizeof(*u));
    struct set *s = u ? get_set(t, id) : NULL;
    if (!s) {
        free(u);
        return error_nomem(errp);
    }
    *u = (struct fdset_use){.set = s, .fd = fd, .note = note};
    list_append(&s->fds, &u->in_set);
    t->fds++;
    *idp = s->id;
    return 0;
}

int fdset_add(struct graph *g, int64_t id, int fd, const char *note,
              int64_t *idp, struct error **errp)
{
    char *copy = note ? strdup(note) : NULL;

    if (note && !copy) {
        return error_nomem(errp);
    }
    if (id < -1) {
        free(copy);
        return error_set(errp, EINVAL,
                         "Parameter 'fdset-id' expects a non-negative value");
    }
    mutex_lock(&g->fdsets.lock);
    int r = add_fd(&g->fdsets, id, fd, copy, idp, errp);
    mutex_unlock(&g->fdsets.lock);
    if (r < 0) {
        free(copy);
    }
    return r;
}

static bool remove_fd(struct fdset_table *t, int64_t id, int fd)
    REQUIRES(t->lock)
{
    struct set *s = find_set(t, id);
    bool found = s && fd < 0;

    if (!s) {
        return false;
    }
    list_for_each_safe (l, &s->fds) {
        struct fdset_use *u = list_entry(l, struct fdset_use, in_set);

        if (u->fd >= 0 && (fd < 0 || u->fd == fd)) {
            take_out(t, u);
            found = true;
        }
    }
    drop_if_empty(s);
    return found;
}

int fdset_remove(struct graph *g, int64_t id, int fd, struct error **errp)
{
    mutex_lock(&g->fdsets.lock);
    bool found = remove_fd(&g->fdsets, id, fd);
    mutex_unlock(&g->fdsets.lock);
    if (found) {
        return 0;
    }
    return fd < 0 ? error_set(errp, ENOENT,
                              "File descriptor named 'fdset-id:%" PRId64
                              "' not found",
                              id)
                  : error_set(errp, ENOENT,
                              "File descriptor named 'fdset-id:%" PRId64
                              ", fd:%d' not found",
                              id, fd);
}

static json_t *describe(const struct set *s)
{
    json_t *fds = json_array();

    list_for_each (l, &s->fds) {
        const struct fdset_use *u = list_entry(l, struct fdset_use, in_set);

        if (u->fd >= 0) {
            (void)json_array_append_new(
                fds, json_pack("{s:i, s:s*}", "fd", u->fd, "opaque", u->note));
        }
    }
    return json_pack("{s:I, s:o}", "fdset-id", (json_int_t)s->id, "fds", fds);
}

json_t *fdset_query(struct graph *g)
{
    json_t *all = json_array();

    mutex_lock(&g->fdsets.lock);
    list_for_each (at, &g->fdsets.list) { /* QEMU's order: the last first */
        (void)json_array_insert_new(
            all, 0, describe(list_entry(at, struct set, in_table)));
    }
    mutex_unlock(&g->fdsets.lock);
    return all;
}

/* --- What nodes do --- */

bool fdset_is_name(const char *filename)
{
    return strncmp(filename, PREFIX, strlen(PREFIX)) == 0;
}

static struct fdset_use *find_use(const struct set *s, int flags)
{
    list_for_each (l, &s->fds) {
        struct fdset_use *u = list_entry(l, struct fdset_use, in_set);
        int has = u->fd >= 0 ? fcntl(u->fd, F_GETFL) : -1;

        if (has >= 0 && (has & O_ACCMODE) == (flags & O_ACCMODE)) {
            return u;
        }
    }
    return NULL;
}

static int duplicate(int of, int flags, struct error **errp)
{
    int fd = fcntl(of, F_DUPFD_CLOEXEC, 0);
    int has = fd < 0 ? -1 : fcntl(fd, F_GETFL);
    int direct = flags & O_DIRECT;

    if (has < 0 || ((has & O_DIRECT) != direct &&
                    fcntl(fd, F_SETFL, (has & ~O_DIRECT) | direct) < 0)) {
        int code = errno;

        if (fd >= 0) {
            (void)close(fd);
        }
        return error_set(errp, code, "cannot duplicate a descriptor: %s",
                         strerror(code));
    }
    return fd;
}

static int dup_of_set(struct fdset_table *t, const char *filename, int64_t id,
                      int flags, struct fdset_use **use, struct error **errp)
    REQUIRES(t->lock)
{
    struct set *s = find_set(t, id);
    struct fdset_use *u = s ? find_use(s, flags) : NULL;

    if (!s) {
        return error_set(errp, ENOENT, "Failed to find fdset %s", filename);
    }
    if (!u) {
        return error_set(errp, EACCES,
                         "Failed to find file descriptor with matching "
                         "flags=0x%x",
                         (unsigned)flags & O_ACCMODE);
    }
    int fd = duplicate(u->fd, flags, errp);
    if (fd >= 0) {
        u->uses++;
        *use = u;
    }
    return fd;
}

int fdset_dup(struct graph *g, const char *filename, int flags,
              struct fdset_use **use, struct error **errp)
{
    const char *number = filename + strlen(PREFIX);
    char *end;

    errno = 0;
    long long id = strtoll(number, &end, 10);
    if (number[0] < '0' || number[0] > '9' || *end || errno != 0) {
        return error_set(errp, EINVAL, "Could not parse fdset %s", filename);
    }
    mutex_lock(&g->fdsets.lock);
    int fd = dup_of_set(&g->fdsets, filename, id, flags, use, errp);
    mutex_unlock(&g->fdsets.lock);
    return fd;
}

bool fdset_put(struct graph *g, struct fdset_use *use)
{
    mutex_lock(&g->fdsets.lock);
    struct set *s = use->set;
    bool last = --use->uses == 0;
    drop_if_idle(use);
    drop_if_empty(s);
    mutex_unlock(&g->fdsets.lock);
    return last;
}
