/* SPDX-License-Identifier: BSD-3-Clause */
/* Where a disk is restored to: see restore-target.h. */
#include "cli/restore-target.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/cli.h"
#include "cli/nbd-client.h"
#include "nbdelta/blk.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "nbdelta/image.h"
#include "nbdelta/options.h"

#define SECTOR     512
#define LOOK_BYTES MiB

#define CONNECTIONS 4

static bool ends_with(const char *text, const char *end)
{
    size_t len = strlen(text);

    return len >= strlen(end) && strcmp(text + len - strlen(end), end) == 0;
}

static const char *format_of(const struct restore_target *t)
{
    return t->format                      ? t->format
           : client_is_uri(t->name)       ? "raw"
           : ends_with(t->name, ".qcow2") ? "qcow2"
                                          : "raw";
}

/* --- Is it in use? --- */

/* Is the file @st that of the loop device @loop ("loop0")? */
static bool is_file_of(const char *loop, const struct stat *st)
{
    char path[300];
    char file[4096];
    struct stat other;
    size_t len = 0;

    (void)snprintf(path, sizeof(path), "/sys/block/%s/loop/backing_file", loop);
    FILE *f = fopen(path, "re");
    if (f) {
        len = fread(file, 1, sizeof(file) - 1, f);
        (void)fclose(f);
    }
    file[len] = '\0';
    file[strcspn(file, "\n")] = '\0';
    return len > 0 && stat(file, &other) == 0 && other.st_dev == st->st_dev &&
           other.st_ino == st->st_ino;
}

static int check_loops(const struct restore_target *t, const struct stat *st,
                       struct error **errp)
{
    char loop[64] = "";
    DIR *dir = opendir("/sys/block");

    for (const struct dirent *e; dir && !loop[0] && (e = readdir(dir));) {
        if (strncmp(e->d_name, "loop", 4) == 0 && is_file_of(e->d_name, st)) {
            (void)snprintf(loop, sizeof(loop), "%.60s", e->d_name);
        }
    }
    if (dir) {
        (void)closedir(dir);
    }
    return loop[0] ? error_set(errp, EBUSY,
                               "'%s' is in use: it is the file of /dev/%s",
                               t->name, loop)
                   : 0;
}

/* The kernel lets one have a device alone that is neither mounted nor used for
 * swap, RAID or volumes; nor is a part of it. */
static int take_alone(struct restore_target *t, struct error **errp)
{
    t->alone = open(t->name, O_RDWR | O_EXCL | O_CLOEXEC);
    if (t->alone >= 0) {
        return 0;
    }
    return errno == EBUSY
               ? error_set(errp, EBUSY,
                           "'%s' is in use: mounted, or a part of something",
                           t->name)
               : error_set(errp, errno, "cannot open '%s': %s", t->name,
                           strerror(errno));
}

/* What a restore to it would destroy is what is restored. */
static int check_outside(const struct restore_target *t, struct error **errp)
{
    CLEANUP_FREE char *copy = strdup(t->name);
    CLEANUP_FREE char *real = realpath(t->name, NULL);
    size_t len = strlen(t->store);

    if (!copy) {
        return error_nomem(errp);
    }
    if (!real) {
        char *slash = strrchr(copy, '/');
        if (slash) {
            slash[slash == copy] = '\0';
        }
        real = realpath(slash ? copy : ".", NULL);
    }
    if (!real) {
        return error_set(errp, errno, "cannot create '%s': %s", t->name,
                         strerror(errno));
    }
    if (strncmp(real, t->store, len) == 0 &&
        (real[len] == '/' || real[len] == '\0')) {
        return error_set(errp, EINVAL, "'%s' is inside of the backup directory",
                         t->name);
    }
    return 0;
}

/* --- Is it empty? --- */

struct look {
    struct blk *blk;
    char *buf;
    uint64_t offset; /* of what is said to be data */
    uint64_t bytes;
    bool data; /* something was found */
};

/* Ends the walk at the first range that is said to be data: a device says so of
 * everything. */
static int look_at(const struct extent *e, void *opaque)
{
    struct look *l = opaque;

    if (!(e->flags & EXTENT_ZERO)) {
        l->offset = e->offset;
        l->bytes = e->length;
        return 1;
    }
    return 0;
}

/* Read it, and look whether it is zeroes. */
static int look_at_data(struct look *l)
{
    uint64_t end = l->offset + l->bytes;
    int r = 0;

    for (uint64_t at = l->offset; r == 0 && at < end && !l->data;
         at += LOOK_BYTES) {
        uint64_t bytes = min_u64(LOOK_BYTES, end - at);

        r = blk_pread(l->blk, l->buf, bytes, at, 0);
        l->data = l->buf[0] || memcmp(l->buf, l->buf + 1, bytes - 1) != 0;
    }
    return r;
}

static int find_empty(struct restore_target *t)
{
    CLEANUP_FREE char *buf = malloc(LOOK_BYTES);
    struct look l = {.blk = t->blk, .buf = buf};
    uint64_t size = blk_size(t->blk);
    int r = buf ? 1 : -ENOMEM;

    for (uint64_t at = 0; r > 0 && at < size && !l.data;
         at = l.offset + l.bytes) {
        r = blk_extents(l.blk, at, size - at, 0, look_at, &l);
        if (r > 0) {
            int read = look_at_data(&l);
            r = read < 0 ? read : r;
        }
    }
    t->empty = r >= 0 && !l.data;
    return r < 0 ? r : 0;
}

static int check_empty(struct restore_target *t, struct error **errp)
{
    int r = t->force || t->created ? 0 : find_empty(t);

    t->empty |= t->created;
    if (r < 0) {
        return error_set(errp, -r, "cannot read '%s': %s", t->name,
                         strerror(-r));
    }
    return t->force || t->empty
               ? 0
               : error_set(errp, EEXIST,
                           "'%s' is not empty (--force overwrites it)",
                           t->name);
}

/* --- Opening --- */

/* Of a file that is made here. */
static json_t *create_options(const struct restore_target *t)
{
    bool raw = strcmp(format_of(t), "raw") == 0;

    return json_pack("{s:I}", "size",
                     (json_int_t)(raw ? t->size : align_up(t->size, SECTOR)));
}

static int create_file(struct restore_target *t, struct error **errp)
{
    CLEANUP_JSON json_t *options = create_options(t);

    if (!options) {
        return error_nomem(errp);
    }
    /* Nobody else's file, come between our look and now. */
    int fd = open(t->name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0) {
        return error_set(errp, errno, "cannot create '%s': %s", t->name,
                         strerror(errno));
    }
    (void)close(fd);
    t->created = true;
    return image_create(t->name, format_of(t), options, errp);
}

/* Several, where the server has multi-conn. */
static int set_connections(json_t *options)
{
    json_t *file = json_object_get(options, "file");

    return json_object_set_new(file ? file : options, "connections",
                               json_integer(CONNECTIONS));
}

static int open_node(struct graph *g, struct restore_target *t,
                     struct error **errp)
{
    CLEANUP_JSON json_t *options = NULL;
    int r = options_from_image(t->name, format_of(t), &options, errp);

    if (r < 0) {
        return r;
    }
    if (json_object_set_new(options, "discard", json_string("unmap")) < 0 ||
        (t->remote && set_connections(options) < 0)) {
        return error_nomem(errp);
    }
    r = graph_open(g, options, &t->node, errp);
    if (r == 0) {
        r = blk_new(g, t->node, PERM_READ | PERM_WRITE, 0, "restore", &t->blk,
                    errp);
    }
    return r == -EAGAIN ? -EBUSY : r;
}

/* An image that is not there is made.  Nobody else may have it open: of its own
 * lock the cluster takes away what one client has, and gives it to the next. */
static int open_ceph(struct graph *g, struct restore_target *t,
                     struct error **errp)
{
    CLEANUP_ERROR struct error *err = NULL;
    CLEANUP_JSON json_t *options = create_options(t);
    int r = options ? open_node(g, t, &err) : -ENOMEM;

    if (r == -ENOENT) {
        r = image_create(t->name, format_of(t), options, errp);
        if (r < 0) {
            return r;
        }
        t->created = true;
        r = open_node(g, t, errp);
    } else if (r < 0) {
        return err ? error_set(errp, -r, "%s", error_message(err))
                   : error_nomem(errp);
    }
    r = r < 0 ? r : node_check_alone(t->node, errp);
    if (r < 0) {
        error_prefix(errp, "'%s': ", t->name);
    }
    return r;
}

static int check_size(const struct restore_target *t, bool exact,
                      struct error **errp)
{
    uint64_t size = blk_size(t->blk);
    bool fits = exact ? size == t->size || size == align_up(t->size, SECTOR)
                      : size >= t->size;

    return fits ? 0
                : error_set(errp, EINVAL,
                            "'%s' has %" PRIu64 " bytes, and the disk %" PRIu64,
                            t->name, size, t->size);
}

static int open_any(struct graph *g, struct restore_target *t,
                    struct error **errp)
{
    bool remote = client_is_uri(t->name);
    struct stat st;

    if (options_names_rbd(t->name)) {
        int r = open_ceph(g, t, errp);
        r = r < 0 ? r : check_size(t, true, errp);
        return r < 0 ? r : check_empty(t, errp);
    }
    int r = remote ? 0 : check_outside(t, errp);

    if (r < 0) {
        return r;
    }
    bool there = !remote && stat(t->name, &st) == 0;
    bool file = there && S_ISREG(st.st_mode);
    if (file) {
        r = check_loops(t, &st, errp);
    } else if (there && S_ISBLK(st.st_mode)) {
        r = take_alone(t, errp);
    } else if (there) {
        r = error_set(errp, EINVAL, "'%s' is neither a file nor a block device",
                      t->name);
    } else if (!remote) {
        r = create_file(t, errp);
    }
    if (r == 0) {
        r = open_node(g, t, errp);
    }
    if (r == 0) {
        r = check_size(t, file || t->created, errp);
    }
    return r < 0 ? r : check_empty(t, errp);
}

int target_open(struct graph *g, struct restore_target *t, struct error **errp)
{
    t->alone = -1;
    t->node = NULL;
    t->blk = NULL;
    t->created = false;
    t->empty = false;
    t->remote = client_is_uri(t->name);
    int r = open_any(g, t, errp);
    if (r < 0) {
        target_close(g, t, false);
    }
    return r;
}

void target_close(struct graph *g, struct restore_target *t, bool kept)
{
    blk_free(t->blk);
    t->blk = NULL;
    if (t->node) {
        (void)graph_close(g, t->node, NULL);
        t->node = NULL;
    }
    if (t->alone >= 0) {
        (void)close(t->alone);
        t->alone = -1;
    }
    if (t->created && !kept) {
        CLEANUP_ERROR struct error *err = NULL;

        if (image_remove(t->name, &err) < 0) {
            (void)cli_failed("restore",
                             "'%s' is left, with a part of the disk: %s",
                             t->name, error_message(err));
        }
    }
}
