/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The snapshots of a hostile image: listed, read, made, removed, applied.
 *
 *   what is seen     a few pieces of the disk and of each snapshot
 *   a change         seen again: the same, but the removed snapshot is not
 *                    there, and the disk that was switched is the snapshot
 *   afterwards       check finds no more than before
 *
 * A removal and a switch look at all counts first, so this holds for every
 * image.  Only what a sound image has is safe from a new snapshot, which takes
 * clusters that count as free.  The first 4 bytes of the input choose the
 * change; the rest is the image.
 */
#include "fuzz-file.h"

#include "nbdelta/action.h"
#include "nbdelta/image.h"
#include "nbdelta/internal-snapshot.h"

#define PIECE     2048
#define PIECES    48
#define SHOWN_MAX 4 /* snapshots that are looked at */
#define WHICH_MAX 512

/* What a disk shows.  A piece that cannot be read has no hash (0). */
struct shown {
    char which[WHICH_MAX]; /* empty: the disk itself */
    bool there;
    uint64_t size;
    uint64_t hash[PIECES];
};

struct seen {
    struct shown disk;
    struct shown snapshot[SHOWN_MAX];
    unsigned count;
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

static void look(struct blk *b, struct shown *s)
{
    static unsigned char buf[PIECE];

    s->there = true;
    s->size = blk_size(b);
    for (unsigned i = 0; i < PIECES; i++) {
        uint64_t at = i < PIECES / 2 ? (uint64_t)i * PIECE
                                     : s->size / PIECES * i / 512 * 512;
        uint64_t len = at < s->size ? min_u64(PIECE, s->size - at) : 0;

        s->hash[i] = len > 0 && blk_pread(b, buf, len, at, 0) == 0
                         ? hash(buf, len)
                         : 0;
    }
}

/* The list that means one snapshot; empty if that does not fit. */
static void name_it(const json_t *sn, char *which)
{
    static const char *const keys[] = {"id", "name"};
    size_t len = 0;

    for (unsigned k = 0; k < 2; k++) {
        const char *value = json_string_value(json_object_get(sn, keys[k]));

        len += (size_t)snprintf(which + len, WHICH_MAX - len,
                                "%ssnapshot.%s=", k ? "," : "", keys[k]);
        for (; value && *value && len < WHICH_MAX - 40; value++) {
            which[len++] = *value;
            if (*value == ',') {
                which[len++] = ',';
            }
        }
        if (!value || *value) {
            *which = '\0';
            return;
        }
        which[len] = '\0';
    }
}

static bool is_named(const struct seen *s, const char *which)
{
    for (unsigned i = 0; i < s->count; i++) {
        if (strcmp(s->snapshot[i].which, which) == 0) {
            return true;
        }
    }
    return false;
}

static void list(struct graph *g, struct node *disk, struct seen *s)
{
    CLEANUP_JSON json_t *info = node_image_info(g, disk);
    size_t i;
    json_t *sn;

    json_array_foreach (json_object_get(info, "snapshots"), i, sn) {
        struct shown *at = &s->snapshot[s->count];

        if (s->count < SHOWN_MAX) {
            name_it(sn, at->which);
            s->count += at->which[0] && !is_named(s, at->which);
        }
    }
}

static void look_at_view(struct graph *g, struct blk *b, struct shown *s)
{
    CLEANUP_ERROR struct error *err = NULL;
    uint64_t size = 0;
    struct blk *view;
    int measured = blk_snapshot_size(b, s->which, &size, NULL);
    int r = blk_snapshot_view(g, b, s->which, "fuzz", &view, &err);

    s->there = r == 0;
    if (r == 0) {
        check(measured == 0);
        look(view, s);
        check(s->size == size);
        blk_free(view);
    } else {
        check(err && error_code(err) == -r);
    }
}

static void see(struct graph *g, struct node *disk, struct seen *s)
{
    struct blk *b;

    check(blk_new(g, disk, PERM_READ, PERM_ALL, "fuzz", &b, NULL) == 0);
    look(b, &s->disk);
    for (unsigned i = 0; i < s->count; i++) {
        look_at_view(g, b, &s->snapshot[i]);
    }
    blk_free(b);
}

/* What could be read reads the same. */
static void same(const struct shown *was, const struct shown *is)
{
    if (!was->there) {
        return;
    }
    check(is->there && is->size == was->size);
    for (unsigned i = 0; i < PIECES; i++) {
        check(was->hash[i] == 0 || was->hash[i] == is->hash[i]);
    }
}

/* --- Changing --- */

struct verdict {
    bool known;
    uint64_t corruptions;
};

static struct verdict judge(void)
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
    return (struct verdict){r == 0, r == 0 ? c.corruptions : 0};
}

static int change(struct graph *g, struct node *disk, enum internal_verb verb,
                  const char *id, const char *name)
{
    const struct internal_options o = {
        .node = disk, .verb = verb, .id = id, .name = name};
    struct action *a;
    int r = snapshot_internal_action(&o, &a, NULL);

    return r < 0 ? r : action_run(g, a, NULL);
}

/* The change that the input chooses, of snapshot @i of what was seen. */
static int change_one(struct graph *g, struct node *disk,
                      enum internal_verb verb, unsigned i)
{
    CLEANUP_JSON json_t *info = node_image_info(g, disk);
    size_t k;
    json_t *sn;

    if (verb == INTERNAL_MAKE) {
        return change(g, disk, verb, NULL, "made by the fuzzer");
    }
    json_array_foreach (json_object_get(info, "snapshots"), k, sn) {
        if (k == i) {
            return change(g, disk, verb,
                          json_string_value(json_object_get(sn, "id")),
                          json_string_value(json_object_get(sn, "name")));
        }
    }
    return -ENOENT;
}

static void compare(const struct seen *was, const struct seen *is,
                    enum internal_verb verb, unsigned i, int r)
{
    bool applied = r == 0 && verb == INTERNAL_APPLY;

    same(applied ? &was->snapshot[i] : &was->disk, &is->disk);
    for (unsigned k = 0; k < was->count; k++) {
        if (k != i || verb != INTERNAL_REMOVE || r < 0) {
            same(&was->snapshot[k], &is->snapshot[k]);
        }
    }
}

/* Open the image, and change it if it is opened for writing. */
static void use(bool writable, uint32_t choice, bool sound)
{
    static struct seen was;
    static struct seen is;
    struct graph *g = graph_new();
    struct node *file = make_file(g);
    struct node *disk = NULL;
    CLEANUP_JSON json_t *o = json_pack(
        "{s:s, s:s, s:n, s:b, s:s}", "driver", "qcow2", "file", "image",
        "backing", "read-only", !writable, "discard", "unmap");

    if (graph_open(g, o, &disk, NULL) == 0) {
        enum internal_verb verb = (enum internal_verb)(choice % 3);

        memset(&was, 0, sizeof(was));
        list(g, disk, &was);
        is = was;
        see(g, disk, &was);
        unsigned i = was.count ? choice / 3 % was.count : 0;
        if (writable) {
            int r = change_one(g, disk, verb, i);
            see(g, disk, &is);
            if (sound || verb != INTERNAL_MAKE) {
                compare(&was, &is, verb, i, r);
            }
        }
        check(graph_close(g, disk, NULL) == 0);
    }
    graph_lock(g);
    node_unref(file);
    graph_unlock(g);
    graph_free(g);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    /* The bits of a cluster's size are the file's, so tables stay in memory. */
    if (size < 512 + 4 || size > INPUT_MAX) {
        return 0;
    }
    fill_file(data + 4, size - 4);
    struct verdict before = judge();
    use(false, 0, false);
    check(memcmp(bytes_of_file, data + 4, size - 4) == 0);
    use(true, load_be32(data), before.known && before.corruptions == 0);
    struct verdict after = judge();
    if (before.known && before.corruptions == 0) {
        check(after.known && after.corruptions == 0);
    }
    memset(bytes_of_file, 0, used);
    return 0;
}
