/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Storage snapshots, whichever driver makes them: see
 * nbdelta/storage-snapshot.h.
 *
 * The name of a process that owns something is MACHINE-PID-START-CLIENT.
 * MACHINE stands for one boot and one PID namespace, in which PID and START
 * (when it began, in ticks) are of one process.  From elsewhere it is seen by
 * its connection to the storage.
 */
#include "nbdelta/storage-snapshot.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/graph.h"
#include "core/node.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"

/* --- Where --- */

struct node *storage_below(const struct node *n)
{
    if (n->drv->shows_all) {
        n = n->drv->shows_all(n);
    }
    return n && n->drv->storage && n->drv->storage->possible(n)
               ? (struct node *)(uintptr_t)n
               : NULL;
}

bool storage_has_snapshots(const struct node *n)
{
    return storage_below(n) != NULL;
}

bool storage_is_shown(struct graph *g, const struct node *n)
{
    bool shown = false;

    graph_lock(g);
    list_for_each (at, &n->parents) {
        const struct node *p = list_entry(at, struct edge, on_child)->parent;

        shown |= p && p->drv->shows_all && p->drv->shows_all(p) == n;
    }
    graph_unlock(g);
    return shown;
}

/* *np becomes the node that makes them.  NULL, with @errp: there is none. */
static const struct driver_storage *find(struct node **np, struct error **errp)
{
    struct node *at = storage_below(*np);

    if (!at) {
        (void)error_set(errp, ENOTSUP,
                        "the storage of node '%s' makes no snapshots",
                        node_name(*np));
        return NULL;
    }
    *np = at;
    return at->drv->storage;
}

/* --- Changing and listing --- */

int storage_ready(struct node *n, struct error **errp)
{
    const struct driver_storage *drv = find(&n, errp);

    return drv ? drv->ready(n, errp) : -ENOTSUP;
}

int storage_remove(struct node *n, const char *name, struct error **errp)
{
    const struct driver_storage *drv = find(&n, errp);

    return drv ? drv->remove(n, name, errp) : -ENOTSUP;
}

int storage_rename(struct node *n, const char *from, const char *to,
                   struct error **errp)
{
    const struct driver_storage *drv = find(&n, errp);
    CLEANUP_STORAGE struct storage_snapshots list = {0};
    int r = drv ? drv->list(n, &list, errp) : -ENOTSUP;

    if (r < 0) {
        return r;
    }
    if (!storage_snapshot_find(&list, from) &&
        storage_snapshot_find(&list, to)) {
        return 0;
    }
    return drv->rename(n, from, to, errp);
}

int storage_snapshots_get(struct node *n, struct storage_snapshots *list,
                          struct error **errp)
{
    const struct driver_storage *drv = find(&n, errp);

    *list = (struct storage_snapshots){0};
    return drv ? drv->list(n, list, errp) : -ENOTSUP;
}

bool storage_settled(const struct node *n)
{
    const struct node *at = storage_below(n);

    return !at || at->drv->storage->settled(at);
}

void storage_snapshots_free(struct storage_snapshots *list)
{
    for (size_t i = 0; i < list->count; i++) {
        free(list->at[i].name);
    }
    free(list->at);
    *list = (struct storage_snapshots){0};
}

const struct storage_snapshot *storage_snapshot_find(
    const struct storage_snapshots *list, const char *name)
{
    for (size_t i = 0; i < list->count; i++) {
        if (strcmp(list->at[i].name, name) == 0) {
            return &list->at[i];
        }
    }
    return NULL;
}

/* --- Owners --- */

/* FNV-1a. */
static uint32_t mix(uint32_t hash, const char *text)
{
    for (; *text; text++) {
        hash = (hash ^ (unsigned char)*text) * UINT32_C(16777619);
    }
    return hash;
}

/* The first line of a file of proc. */
static void read_line(const char *path, char *line, int size)
{
    FILE *f = fopen(path, "re");

    if (!f || !fgets(line, size, f)) {
        line[0] = '\0';
    }
    if (f) {
        (void)fclose(f);
    }
}

static uint32_t machine(void)
{
    char boot[64];
    char space[64] = "";

    read_line("/proc/sys/kernel/random/boot_id", boot, sizeof(boot));
    if (readlink("/proc/self/ns/pid", space, sizeof(space) - 1) < 0) {
        space[0] = '\0';
    }
    return mix(mix(UINT32_C(2166136261), boot), space);
}

/* When the process began, in ticks since the boot; 0: it is not there. */
static uint64_t start_of(uint64_t pid)
{
    char path[64];
    char line[1024];
    char *save;

    (void)snprintf(path, sizeof(path), "/proc/%" PRIu64 "/stat", pid);
    read_line(path, line, sizeof(line));
    char *at = strrchr(line, ')'); /* the name may have anything before it */
    at = at ? strtok_r(at + 1, " ", &save) : NULL;
    for (unsigned field = 3; at && field < 22; field++) {
        if (field == 3 && (*at == 'Z' || *at == 'X')) {
            return 0;
        }
        at = strtok_r(NULL, " ", &save);
    }
    return at ? strtoull(at, NULL, 10) : 0;
}

void storage_owner(const struct node *n, char text[STORAGE_OWNER_MAX])
{
    const struct node *at = storage_below(n);
    uint64_t client = at ? at->drv->storage->client(at) : 0;
    uint64_t pid = (uint64_t)getpid();

    (void)snprintf(text, STORAGE_OWNER_MAX,
                   "%08" PRIx32 "-%" PRIu64 "-%" PRIu64 "-%" PRIu64, machine(),
                   pid, start_of(pid), client);
}

struct owner {
    uint64_t machine;
    uint64_t pid;
    uint64_t start;
    uint64_t client;
};

static bool read_owner(const char *text, struct owner *o)
{
    uint64_t *const parts[] = {&o->machine, &o->pid, &o->start, &o->client};

    for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++) {
        char *end;

        errno = 0;
        *parts[i] = strtoull(text, &end, i == 0 ? 16 : 10);
        if (errno != 0 || end == text || !isxdigit((unsigned char)*text) ||
            *end != (i == 3 ? '\0' : '-')) {
            return false;
        }
        text = end + 1;
    }
    return true;
}

int storage_owner_lives(struct node *n, const char *text, struct error **errp)
{
    const struct driver_storage *drv = find(&n, errp);
    struct owner o;

    if (!drv) {
        return -ENOTSUP;
    }
    if (!read_owner(text, &o)) {
        return error_set(errp, EINVAL, "'%.200s' is the name of no process",
                         text);
    }
    if (o.machine == machine()) {
        return o.start > 0 && start_of(o.pid) == o.start;
    }
    return drv->has_client(n, o.client, errp);
}

/* --- Reading --- */

int storage_view(struct graph *g, struct node *n, const char *name,
                 struct node **viewp, struct error **errp)
{
    const struct driver_storage *drv = find(&n, errp);

    if (!drv) {
        return -ENOTSUP;
    }
    CLEANUP_JSON json_t *options = json_deep_copy(n->options);
    if (!options || json_object_set_new(options, "read-only", json_true()) ||
        drv->show(options, name) < 0) {
        return error_nomem(errp);
    }
    (void)json_object_del(options, "node-name");
    (void)json_object_del(options, "auto-read-only");
    (void)json_object_del(options, "detect-zeroes");
    return graph_open(g, options, viewp, errp);
}

struct cut {
    storage_diff_fn *fn;
    void *opaque;
    uint64_t end; /* what comes after differs anyway */
};

static int tell_cut(uint64_t offset, uint64_t bytes, void *opaque)
{
    const struct cut *c = opaque;
    uint64_t end = min_u64(offset + bytes, c->end);

    return offset < end ? c->fn(offset, end - offset, c->opaque) : 0;
}

/* The size at @from; -ENOENT. */
static int size_then(struct node *n, const struct driver_storage *drv,
                     const char *from, uint64_t *size, struct error **errp)
{
    CLEANUP_STORAGE struct storage_snapshots list = {0};
    int r = drv->list(n, &list, errp);
    const struct storage_snapshot *s = storage_snapshot_find(&list, from);

    if (r == 0 && !s) {
        r = error_set(errp, ENOENT, "'%.400s' has no snapshot '%.200s'",
                      node_filename(n), from);
    }
    *size = s ? s->size : 0;
    return r;
}

int storage_diff(struct node *n, const char *from, storage_diff_fn *fn,
                 void *opaque, enum storage_diff_how *how, struct error **errp)
{
    uint64_t size = node_size(n);
    struct cut c = {fn, opaque, size};
    uint64_t then = size;
    enum storage_diff_how any;
    int r = 0;

    n = n->drv->storage ? n : node_child(n, CHILD_FILE);
    if (!n || !n->drv->storage) {
        return error_set(errp, ENOTSUP, "the storage makes no snapshots");
    }
    const struct driver_storage *drv = n->drv->storage;
    if (from) {
        r = size_then(n, drv, from, &then, errp);
    }
    c.end = min_u64(then, size);
    r = r < 0 ? r : drv->diff(n, from, tell_cut, &c, how ? how : &any, errp);
    return r == 0 && c.end < size ? fn(c.end, size - c.end, opaque) : r;
}
