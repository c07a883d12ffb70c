/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The images of the command line are opened and exported: see images.h.
 *
 *     [NAME=]IMAGE        options of the image -------------+
 *                                                           +--> export NAME
 *     [NAME=]DIR[@POINT]  options of each disk's chain -----+
 *                                                           |
 *     with an overlay     qcow2 { file, backing: options } -+
 *
 * A backup directory is opened with FOLLOW_NONE: its images name nothing that
 * is not in their options.
 */
#include "serve/images.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "nbd/export.h"
#include "nbd/server.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/image.h"
#include "nbdelta/options.h"
#include "nbdelta/text.h"

#define TEMPORARY   "temporary"
#define TMP_DEFAULT "/var/tmp"
#define SECTOR      512

static int export_image(struct images *im, struct node *n, const char *id,
                        const char *name, struct error **errp)
{
    struct export_options o = {
        .server = SERVER_UNNAMED,
        .id = id,
        .name = name,
        .node = n,
        .writable = !node_read_only(n),
        .allocation_depth = true,
        .all_bitmaps = true,
        .is_default = true,
    };
    struct export *e;
    int r = export_new(im->exports, &o, &e, errp);

    if (r == 0) {
        export_publish(im->exports, e);
    }
    return r;
}

/* Clients that trim want room back; a user can say otherwise in json:. */
static int add_defaults(json_t *options, const char *name, bool read_only,
                        struct error **errp)
{
    return (name &&
            json_object_set_new(options, "node-name", json_string(name)) < 0) ||
                   (!json_object_get(options, "discard") &&
                    json_object_set_new(options, "discard",
                                        json_string("unmap")) < 0) ||
                   (read_only &&
                    json_object_set_new(options, "read-only", json_true()) < 0)
               ? error_nomem(errp)
               : 0;
}

/* --- Overlays --- */

/* A disk that is to be exported. */
struct disk {
    const char *id;   /* of node and export */
    const char *name; /* of the export */
    json_t *options;
    const char *base; /* how qcow2 images name it; NULL: they cannot */
    const char *base_format;
    uint64_t size; /* bytes; 0: it has to be looked at */
    enum graph_follow follow;
};

static int find_size(struct images *im, const struct disk *d, uint64_t *size,
                     struct error **errp)
{
    struct node *n = NULL;

    *size = d->size;
    if (d->size > 0) {
        return 0;
    }
    CLEANUP_JSON json_t *copy = json_deep_copy(d->options);
    int r = copy ? graph_open(im->graph, copy, &n, errp) : error_nomem(errp);
    if (r == 0) {
        *size = node_size(n);
        r = graph_close(im->graph, n, errp);
    }
    return r;
}

static int create_overlay(struct images *im, const struct disk *d,
                          const char *file, struct error **errp)
{
    uint64_t size = 0;
    int r = find_size(im, d, &size, errp);

    if (r < 0) {
        return r;
    }
    CLEANUP_JSON json_t *o = json_pack(
        "{s:I, s:s*, s:s*, s:b}", "size", (json_int_t)align_up(size, SECTOR),
        "backing_file", d->base, "backing_fmt", d->base ? d->base_format : NULL,
        "backing_unchecked", 1);
    return o ? image_create(file, "qcow2", o, errp) : error_nomem(errp);
}

/* It has a name until it is open. */
static int make_temporary(char **path, struct error **errp)
{
    const char *tmp = getenv("TMPDIR");

    if (asprintf(path, "%s/nbdelta-overlay.XXXXXX",
                 tmp && tmp[0] ? tmp : TMP_DEFAULT) < 0) {
        *path = NULL;
        return error_nomem(errp);
    }
    int fd = mkostemp(*path, O_CLOEXEC);
    if (fd < 0) {
        return error_set(errp, errno, "cannot make '%s': %s", *path,
                         strerror(errno));
    }
    (void)close(fd);
    return 0;
}

/* A guest's secrets: for nobody else.  Nobody else's file, come between our
 * look and now. */
static int make_file(const char *path, struct error **errp)
{
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);

    if (fd < 0) {
        return error_set(errp, errno, "cannot create '%s': %s", path,
                         strerror(errno));
    }
    (void)close(fd);
    return 0;
}

static int one_disk_only(const struct images *im, struct error **errp)
{
    return error_set(errp, EINVAL,
                     "--overlay '%s' is no directory, and a file is for one "
                     "disk",
                     im->overlay);
}

/* The file that the overlay of @d is.  *fresh: it has to be made. */
static int find_overlay(struct images *im, const struct disk *d, char **path,
                        bool *fresh, struct error **errp)
{
    struct stat st;

    *fresh = true;
    if (strcmp(im->overlay, TEMPORARY) == 0) {
        return make_temporary(path, errp);
    }
    if (!d->base) {
        return error_set(errp, EINVAL,
                         "'%s': an overlay that is kept needs an image that is "
                         "a file; --overlay " TEMPORARY " needs none",
                         d->name);
    }
    if (stat(im->overlay, &st) == 0 && S_ISDIR(st.st_mode)) {
        if (strchr(d->name, '/')) {
            return error_set(errp, EINVAL, "'%s' cannot name an overlay",
                             d->name);
        }
        if (asprintf(path, "%s/%s.qcow2", im->overlay, d->name) < 0) {
            return error_nomem(errp);
        }
    } else if (im->overlay_used) {
        return one_disk_only(im, errp);
    } else if (!(*path = strdup(im->overlay))) {
        return error_nomem(errp);
    }
    im->overlay_used = true;
    *fresh = lstat(*path, &st) < 0;
    return *fresh ? make_file(*path, errp) : 0;
}

/* Was it made over @d?  Other tools follow what it says. */
static int check_overlay(struct images *im, const struct disk *d,
                         const char *file, struct node *n, struct error **errp)
{
    CLEANUP_JSON json_t *info = node_image_info(im->graph, n);
    const char *below =
        json_string_value(json_object_get(info, "backing-filename"));

    if (!info) {
        return error_nomem(errp);
    }
    return below && strcmp(below, d->base) == 0
               ? 0
               : error_set(errp, EINVAL,
                           "'%s' is not an overlay of '%s', but of %s%s%s",
                           file, d->base, below ? "'" : "",
                           below ? below : "nothing", below ? "'" : "");
}

/* A new file that cannot be used goes again; a temporary one always does. */
static int open_overlay(struct images *im, const struct disk *d,
                        struct node **np, struct error **errp)
{
    CLEANUP_FREE char *file = NULL;
    bool fresh = false;
    int found = find_overlay(im, d, &file, &fresh, errp);
    int r = found;

    if (r == 0 && fresh) {
        r = create_overlay(im, d, file, errp);
    }
    CLEANUP_JSON json_t *options =
        r < 0 ? NULL
              : json_pack("{s:s, s:s, s:s, s:O, s:{s:s, s:s, s:s}}", "driver",
                          "qcow2", "node-name", d->id, "discard", "unmap",
                          "backing", d->options, "file", "driver", "file",
                          "filename", file, "discard", "unmap");
    if (r == 0) {
        graph_follow(im->graph, d->follow);
        r = options ? graph_open(im->graph, options, np, errp)
                    : error_set(errp, EINVAL, "'%s' is no text", file);
        graph_follow(im->graph, im->follow);
    }
    if (r == 0 && !fresh) {
        r = check_overlay(im, d, file, *np, errp);
    }
    if (found == 0 && fresh && (r < 0 || strcmp(im->overlay, TEMPORARY) == 0)) {
        (void)unlink(file);
    }
    return r;
}

static int open_disk(struct images *im, const struct disk *d,
                     struct error **errp)
{
    struct node *n = NULL;
    int r;

    if (im->overlay) {
        r = add_defaults(d->options, NULL, true, errp);
        r = r < 0 ? r : open_overlay(im, d, &n, errp);
    } else {
        r = add_defaults(d->options, d->id, im->read_only, errp);
        graph_follow(im->graph, d->follow);
        r = r < 0 ? r : graph_open(im->graph, d->options, &n, errp);
        graph_follow(im->graph, im->follow);
        /* A node in the options of the image can have a name twice, too. */
        if (r == -EEXIST && errp && strstr(error_message(*errp), d->id)) {
            r = error_set(errp, EEXIST,
                          "two disks have the name '%s': give one of them "
                          "another, NAME=IMAGE",
                          d->id);
        }
    }
    return r < 0 ? r : export_image(im, n, d->id, d->name, errp);
}

/* --- Images --- */

/* The length of NAME in NAME=IMAGE; 0: there is none. */
static size_t name_length(const char *text)
{
    size_t n = text_id_length(text);

    return !options_spelled_out(text) && text[n] == '=' ? n : 0;
}

/* The format that an overlay names: that which was found. */
static int find_format(struct images *im, const struct disk *d,
                       const char **format, struct error **errp)
{
    struct node *n = NULL;
    CLEANUP_JSON json_t *copy = json_deep_copy(d->options);
    int r = !copy ? error_nomem(errp)
            : json_object_set_new(copy, "read-only", json_true()) < 0
                ? error_nomem(errp)
                : graph_open(im->graph, copy, &n, errp);

    if (r == 0) {
        CLEANUP_JSON json_t *info = node_image_info(im->graph, n);
        const char *word = json_string_value(json_object_get(info, "format"));

        *format = word && strcmp(word, "qcow2") == 0 ? "qcow2" : "raw";
        r = graph_close(im->graph, n, errp);
    }
    return r;
}

static int open_image(struct images *im, const char *name, const char *image,
                      struct error **errp)
{
    CLEANUP_JSON json_t *options = NULL;
    CLEANUP_FREE char *real = options_spelled_out(image)
                                  ? NULL
                                  : realpath(image, NULL);
    int r = image_check_format(im->format, errp);

    r = r < 0 ? r : options_from_image(image, im->format, &options, errp);
    struct disk d = {
        .id = name,
        .name = name,
        .options = options,
        .base = real,
        .follow = im->follow,
    };

    if (r == 0 && im->overlay && real) {
        r = find_format(im, &d, &d.base_format, errp);
    }
    return r < 0 ? r : open_disk(im, &d, errp);
}

/* --- Backup directories --- */

/* Give the store of a directory to @im. */
static int keep_store(struct images *im, struct store *s, struct error **errp)
{
    void *all = reallocarray(im->store, im->stores + 1, sizeof(*im->store));

    if (!all) {
        store_close(s);
        return error_nomem(errp);
    }
    im->store = all;
    im->store[im->stores].store = s;
    im->store[im->stores].holds = (struct holds){.count = 0};
    im->stores++;
    return 0;
}

/* NAME, NAME.DISK or DISK. */
static char *name_disk(const char *given, const char *disk, bool alone)
{
    char *name = NULL;

    if (!given) {
        return strdup(disk);
    }
    if (alone) {
        return strdup(given);
    }
    return asprintf(&name, "%s.%s", given, disk) < 0 ? NULL : name;
}

/* A disk's name may be none that a node can have. */
static char *id_of(struct images *im, const char *name)
{
    char *id = NULL;

    if (text_is_id(name)) {
        return strdup(name);
    }
    return asprintf(&id, "disk%u", im->count++) < 0 ? NULL : id;
}

static int open_point_disk(struct images *im, struct store *s,
                           const struct manifest *m,
                           const struct manifest_disk *d, const char *given,
                           struct error **errp)
{
    CLEANUP_JSON json_t *options = NULL;
    CLEANUP_FREE char *path = NULL;
    CLEANUP_FREE char *name = name_disk(given, d->name, m->count == 1);
    CLEANUP_FREE char *id = name ? id_of(im, name) : NULL;

    if (!id || asprintf(&path, "%s/%s/%s.qcow2", store_path(s), d->name,
                        m->name) < 0) {
        return error_nomem(errp);
    }
    int r = store_chain_options(s, d->name, m->name, &options, errp);
    if (r < 0) {
        return r;
    }
    const struct disk disk = {
        .id = id,
        .name = name,
        .options = options,
        .base = path,
        .base_format = "qcow2",
        .size = d->size,
        .follow = FOLLOW_NONE,
    };
    r = open_disk(im, &disk, errp);
    if (r < 0) {
        error_prefix(errp, "point %s, disk '%s': ", m->name, d->name);
    }
    return r;
}

/* Before a file is made for the first of many disks. */
static int check_many(const struct images *im, struct error **errp)
{
    struct stat st;

    return strcmp(im->overlay, TEMPORARY) == 0 ||
                   (stat(im->overlay, &st) == 0 && S_ISDIR(st.st_mode))
               ? 0
               : one_disk_only(im, errp);
}

static int open_point(struct images *im, struct store *s,
                      const struct store_point *p, const char *given,
                      struct error **errp)
{
    int r = store_hold_chain(s, p->name, &im->store[im->stores - 1].holds,
                             errp);
    const struct manifest *m = p->manifest;

    if (r == 0 && !m) {
        return error_set(errp, EUCLEAN,
                         "the manifest of point %s cannot be used: %s", p->name,
                         p->why);
    }
    if (r == 0 && m->count > 1 && im->overlay) {
        r = check_many(im, errp);
    }
    for (unsigned i = 0; r == 0 && i < m->count; i++) {
        r = open_point_disk(im, s, m, &m->disks[i], given, errp);
    }
    return r;
}

static int open_directory(struct images *im, const char *dir, const char *word,
                          const char *given, struct error **errp)
{
    const struct store_point *p = NULL;
    struct store *s = NULL;
    int r = store_open(dir, STORE_READ, "nbdelta serve", &s, errp);

    r = r < 0 ? r : keep_store(im, s, errp);
    r = r < 0 ? r : store_find_point(s, word, &p, errp);
    return r < 0 ? r : open_point(im, s, p, given, errp);
}

int images_open(struct images *im, const char *arg, struct error **errp)
{
    size_t length = name_length(arg);
    CLEANUP_FREE char *given = length > 0 ? strndup(arg, length) : NULL;
    CLEANUP_FREE char *dir = NULL;
    const char *image = length > 0 ? arg + length + 1 : arg;
    const char *word = NULL;
    char number[32];

    if (length > 0 && !given) {
        return error_nomem(errp);
    }
    if (!options_spelled_out(image) &&
        point_name_is_directory(image, &dir, &word)) {
        return open_directory(im, dir, word, given, errp);
    }
    (void)snprintf(number, sizeof(number), "disk%u", im->count++);
    int r = open_image(im, given ? given : number, image, errp);
    if (r == -ENOENT && !given && errp && strchr(image, '=') &&
        !options_spelled_out(image)) {
        r = error_set(
            errp, ENOENT,
            "%s (the NAME of NAME=IMAGE begins with a letter, and has "
            "letters, digits, '-', '.' and '_')",
            error_message(*errp));
    }
    return r;
}

void images_close(struct images *im)
{
    for (unsigned i = 0; i < im->stores; i++) {
        holds_release(&im->store[i].holds);
        store_close(im->store[i].store);
    }
    free(im->store);
}
