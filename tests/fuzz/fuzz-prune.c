/* SPDX-License-Identifier: BSD-3-Clause */

/* Journals of prunes, in a directory of two points: one is over the point that
 * the journal tells of, or was merged with it, and one is over that.  Each
 * input is read twice: as it is, and with the manifest in it signed.  What is
 * taken names points that are there. */
#include <jansson.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "sign.h"
#include "store/prune-priv.h"

#define ID    "0123456789abcdef"
#define GONE  "20261127T023000Z"
#define NEXT  "20261128T023000Z"
#define LAST  "20261129T023000Z"
#define CHUNK 65536

static char hashes[][HASH_TEXT_MAX] = {
    "1111111111111111111111111111111111111111111111111111111111111111",
    "2222222222222222222222222222222222222222222222222222222222222222",
};

static struct manifest *make_point(const char *name, const char *parent,
                                   const char *hash)
{
    struct manifest *m = manifest_new();

    check(m != NULL);
    strcpy(m->name, name);
    strcpy(m->id, ID);
    for (int i = 0; i < 2; i++) {
        struct manifest_disk *d = manifest_add(m, i ? "vdb" : "vda");
        check(d != NULL);
        d->size = CHUNK;
        d->kind = DISK_INCREMENT;
        strcpy(d->parent, parent);
        strcpy(d->parent_hash, hash);
        strcpy(d->sums_hash, hashes[1]);
    }
    return m;
}

/* Without a directory: parsing reads nothing. */
static const struct store *the_store(void)
{
    static struct store_point points[2];
    static struct store s = {
        .dir = -1, .lock = -1, .id = ID, .count = 2, .points = points};

    if (!points[0].manifest) {
        strcpy(points[0].name, NEXT);
        points[0].manifest = make_point(NEXT, GONE, hashes[0]);
        strcpy(points[1].name, LAST);
        points[1].manifest = make_point(LAST, NEXT, hashes[1]);
    }
    return &s;
}

static void check_taken(const struct store *s, const struct removal *r)
{
    check(point_name_valid(r->gone->name) && strcmp(r->gone->id, ID) == 0);
    for (unsigned i = 0; i < r->gone->count; i++) {
        check(r->next[i][0] == '\0' || point_name_valid(r->next[i]));
        check(store_named(s, r->gone->name) || r->next[i][0] == '\0' ||
              store_named(s, r->next[i]));
    }
}

static void read_text(const char *text, size_t length)
{
    CLEANUP_REMOVAL struct removal *r = NULL;
    CLEANUP_ERROR struct error *err = NULL;
    int c = journal_parse(the_store(), text, length, &r, &err);

    if (c == 0) {
        check_taken(the_store(), r);
    } else {
        check(!r && err);
    }
}

/* Its manifest is an object, or the text of one.  NULL: it is neither. */
static char *with_signed(json_t *j)
{
    json_t *inner = json_object_get(j, "manifest");
    CLEANUP_JSON json_t *m = json_is_string(inner)
                                 ? json_loads(json_string_value(inner), 0, NULL)
                                 : json_incref(inner);
    CLEANUP_FREE char *text = sign_manifest(m);

    return text && json_object_set_new(j, "manifest", json_string(text)) == 0
               ? json_dumps(j, 0)
               : NULL;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    CLEANUP_JSON json_t *j = json_loadb((const char *)data, size, 0, NULL);

    read_text((const char *)data, size);
    CLEANUP_FREE char *text = j ? with_signed(j) : NULL;
    if (text) {
        read_text(text, strlen(text));
    }
    return 0;
}
