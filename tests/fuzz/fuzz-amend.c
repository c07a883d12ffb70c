/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A hostile image gets another version, backing file, or flags, and its power
 * is cut at any write of that: its first cluster is laid out anew
 * (qcow2/rehead.c).
 *
 *   input            4 bytes that choose, the image
 *   afterwards       the image has its old properties or all of the new ones,
 *                    these where nothing failed; the disk reads the same
 *
 * On the way to version 2 clusters are allocated, for which only a sound image
 * has counts that are right.
 */
#include "fuzz-file.h"

#include "nbdelta/image.h"

#define PIECE    2048
#define PIECES   48
#define NAME_MAX 1023

/* What an image is. */
struct shown {
    bool there;
    int version;
    char *backing;
    char *fmt;
    uint64_t size;
    uint64_t hash[PIECES]; /* 0: it cannot be read */
};

/* What it shall be; what is NULL or 0 is not asked for. */
struct wish {
    const char *compat;
    char *backing; /* "": none */
    char fmt[20];
    bool lazy;
};

/* --- Looking --- */

static uint64_t hash(const unsigned char *bytes, size_t len)
{
    uint64_t h = UINT64_C(14695981039346656037);

    for (size_t i = 0; i < len; i++) {
        h = (h ^ bytes[i]) * UINT64_C(1099511628211);
    }
    return h | 1;
}

static void look(struct graph *g, struct node *disk, struct shown *s)
{
    static unsigned char buf[PIECE];
    struct blk *b;

    s->there = true;
    s->version = (int)load_be32(bytes_of_file + 4);
    s->backing = disk->image_backing ? strdup(disk->image_backing) : NULL;
    s->fmt = disk->image_backing_fmt ? strdup(disk->image_backing_fmt) : NULL;
    check(blk_new(g, disk, PERM_READ, PERM_ALL, "fuzz", &b, NULL) == 0);
    s->size = blk_size(b);
    for (unsigned i = 0; i < PIECES; i++) {
        uint64_t at = i < PIECES / 2 ? (uint64_t)i * PIECE
                                     : s->size / PIECES * i / 512 * 512;
        uint64_t len = at < s->size ? min_u64(PIECE, s->size - at) : 0;

        s->hash[i] = len > 0 && blk_pread(b, buf, len, at, 0) == 0
                         ? hash(buf, len)
                         : 0;
    }
    blk_free(b);
}

static void forget(struct shown *s)
{
    free(s->backing);
    free(s->fmt);
    *s = (struct shown){0};
}

static bool sound(void)
{
    const struct image_check_options o = {.repair = IMAGE_REPAIR_NONE};
    struct image_check c;
    struct graph *g = graph_new();
    struct node *file = make_file(g);
    int r = image_check(g, file, "qcow2", &o, &c, NULL);

    graph_lock(g);
    node_unref(file);
    graph_unlock(g);
    graph_free(g);
    return r == 0 && c.corruptions == 0;
}

/* --- Changing --- */

static int amend(struct graph *g, struct node *disk, const struct wish *w)
{
    const struct image_amend how = {0};
    CLEANUP_ERROR struct error *err = NULL;
    CLEANUP_JSON json_t *o = json_object();

    check(o);
    if (w->compat) {
        check(json_object_set_new(o, "compat", json_string(w->compat)) == 0);
    }
    if (w->backing) {
        check(json_object_set_new(o, "backing_file", json_string(w->backing)) ==
              0);
        check(json_object_set_new(o, "backing_fmt", json_string(w->fmt)) == 0);
    }
    if (w->lazy) {
        check(json_object_set_new(o, "lazy_refcounts", json_true()) == 0);
    }
    int r = image_amend(g, disk, o, &how, &err);
    check(r == 0 || (err && error_code(err) == -r));
    return r;
}

/* Open the image, change it if there is a wish, with @writes that are not lost,
 * and look at what it was before.  Returns what amending did. */
static int use(const struct wish *w, unsigned long writes, struct shown *was)
{
    struct graph *g = graph_new();
    struct node *file = make_file(g);
    struct node *disk = NULL;
    int r = 0;
    CLEANUP_JSON json_t *o = json_pack("{s:s, s:s, s:n, s:b}", "driver",
                                       "qcow2", "file", "image", "backing",
                                       "read-only", w == NULL);

    if (graph_open(g, o, &disk, NULL) == 0) {
        look(g, disk, was);
        writes_left = writes;
        r = w ? amend(g, disk, w) : 0;
        (void)graph_close(g, disk, NULL);
        writes_left = ULONG_MAX;
    }
    graph_lock(g);
    node_unref(file);
    graph_unlock(g);
    graph_free(g);
    return r;
}

/* --- Judging --- */

static bool alike(const char *a, const char *b)
{
    return a && b ? strcmp(a, b) == 0 : !a && !b;
}

static bool is_old(const struct shown *was, const struct shown *is)
{
    return is->version == was->version && alike(is->backing, was->backing) &&
           alike(is->fmt, was->fmt);
}

static bool is_new(const struct wish *w, const struct shown *was,
                   const struct shown *is)
{
    int version = !w->compat                      ? was->version
                  : strcmp(w->compat, "1.1") == 0 ? 3
                                                  : 2;

    if (is->version != version) {
        return false;
    }
    if (!w->backing) {
        return alike(is->backing, was->backing) && alike(is->fmt, was->fmt);
    }
    return *w->backing
               ? alike(is->backing, w->backing) && alike(is->fmt, w->fmt)
               : !is->backing && !is->fmt;
}

static void compare(const struct wish *w, const struct shown *was,
                    const struct shown *is, bool whole, int r)
{
    check(is->there && is->size == was->size);
    if (whole) {
        check(r == 0 ? is_new(w, was, is) : is_old(was, is));
    } else {
        check(is_old(was, is) || is_new(w, was, is));
    }
    for (unsigned i = 0; i < PIECES; i++) {
        check(was->hash[i] == 0 || was->hash[i] == is->hash[i]);
    }
}

static void choose(const uint8_t *data, struct wish *w, char *name)
{
    static const char *const versions[] = {NULL, "1.1", "0.10", NULL};

    memset(name, 'b', NAME_MAX);
    name[min_u64(data[1] * 5u, NAME_MAX)] = '\0';
    *w = (struct wish){
        .compat = versions[data[0] & 3],
        .backing = data[0] & 4 ? name : NULL,
        .lazy = data[0] & 8,
    };
    memset(w->fmt, 'f', *name ? 1 + data[2] % 16 : 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static char name[NAME_MAX + 1];
    struct shown was = {0};
    struct shown is = {0};
    struct wish w;
    bool whole = size > 4 && data[3] == UINT8_MAX;

    /* The bits of a cluster's size are the file's, so tables stay in memory. */
    if (size < 512 + 4 || size > INPUT_MAX) {
        return 0;
    }
    choose(data, &w, name);
    fill_file(data + 4, size - 4);
    bool was_sound = sound();
    int r = use(&w, whole ? ULONG_MAX : data[3] % 16u, &was);
    if (was.there && (was_sound || was.version < 3 || !w.compat ||
                      strcmp(w.compat, "1.1") == 0)) {
        (void)use(NULL, ULONG_MAX, &is);
        compare(&w, &was, &is, whole, r);
        check(!was_sound || sound());
    }
    forget(&was);
    forget(&is);
    memset(bytes_of_file, 0, used);
    return 0;
}
