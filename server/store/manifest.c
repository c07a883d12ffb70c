/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Manifests of points: see manifest.h.
 *
 * There is one text for one manifest: members in a fixed order, in a fixed
 * layout, the hash of the text without it last.
 *
 *     struct manifest -- manifest_text --> text
 *           ^                               |
 *           +---- JSON, member by member ---+   and the same text again?
 *
 * Reading ends with writing it again: what comes out has to be the same bytes.
 * So a changed bit is noticed also where it changes no value (in an escape, in
 * white space).
 */
#include "store/manifest.h"

#include <errno.h>
#include <gnutls/crypto.h>
#include <gnutls/gnutls.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/types.h"

#define TEXT_LENGTH_MAX 4096

static const char *const kind_words[] = {"full", "increment", "compared"};

static const char *const reason_words[REASON_COUNT] = {
    [REASON_ASKED] = "asked",
    [REASON_NEW_DISK] = "new-disk",
    [REASON_NO_CHECKPOINT] = "no-checkpoint",
    [REASON_BITMAP_INCONSISTENT] = "bitmap-inconsistent",
    [REASON_BITMAP_DISABLED] = "bitmap-disabled",
    [REASON_BASE_BITMAP] = "base-bitmap",
    [REASON_CHECKPOINT_PENDING] = "checkpoint-pending",
    [REASON_NO_BITMAPS] = "no-bitmaps",
    [REASON_PARENT_MISSING] = "parent-missing",
    [REASON_PARENT_DAMAGED] = "parent-damaged",
    [REASON_RESIZED] = "resized",
    [REASON_MOVED] = "moved",
};

const char *disk_kind_word(enum disk_kind kind)
{
    return kind_words[kind];
}

const char *disk_reason_word(enum disk_reason reason)
{
    return reason_words[reason];
}

bool disk_reason_from(const char *word, enum disk_reason *reason)
{
    for (int i = REASON_NONE + 1; i < REASON_COUNT; i++) {
        if (strcmp(word, reason_words[i]) == 0) {
            *reason = (enum disk_reason)i;
            return true;
        }
    }
    return false;
}

/* --- Hashes --- */

void hash_to_text(const uint8_t *hash, char *out)
{
    static const char digits[] = "0123456789abcdef";

    for (size_t i = 0; i < HASH_BYTES; i++) {
        out[2 * i] = digits[hash[i] >> 4];
        out[2 * i + 1] = digits[hash[i] & 15];
    }
    out[HASH_TEXT_MAX - 1] = '\0';
}

int hash_of(const void *bytes, size_t length, char *out, struct error **errp)
{
    uint8_t hash[HASH_BYTES];

    if (gnutls_hash_fast(GNUTLS_DIG_SHA256, bytes, length, hash) < 0) {
        return error_set(errp, ENOTSUP, "cannot compute a SHA-256");
    }
    hash_to_text(hash, out);
    return 0;
}

static bool only_hex(const char *text)
{
    return text[strspn(text, "0123456789abcdef")] == '\0';
}

bool hash_text_valid(const char *text)
{
    return strlen(text) == HASH_TEXT_MAX - 1 && only_hex(text);
}

/* --- The struct --- */

struct manifest *manifest_new(void)
{
    return calloc(1, sizeof(struct manifest));
}

void manifest_free(struct manifest *m)
{
    if (!m) {
        return;
    }
    for (unsigned i = 0; i < m->count; i++) {
        free(m->disks[i].name);
        free(m->disks[i].checkpoint);
        free(m->disks[i].image);
    }
    free(m->disks);
    free(m->source);
    free(m->source_version);
    free(m->program);
    free(m->agent);
    free(m);
}

struct manifest_disk *manifest_add(struct manifest *m, const char *name)
{
    char *copy = strdup(name);
    struct manifest_disk *all =
        copy ? reallocarray(m->disks, m->count + 1, sizeof(*all)) : NULL;

    if (!all) {
        free(copy);
        return NULL;
    }
    m->disks = all;
    all[m->count] = (struct manifest_disk){.name = copy};
    return &all[m->count++];
}

struct manifest_disk *manifest_find(const struct manifest *m, const char *name)
{
    for (unsigned i = 0; i < m->count; i++) {
        if (strcmp(m->disks[i].name, name) == 0) {
            return &m->disks[i];
        }
    }
    return NULL;
}

/* --- Rules, for both ways --- */

/* Disks are the only thing of which a hostile manifest may have many. */
static int compare_names(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static int check_unique(const struct manifest *m, struct error **errp)
{
    CLEANUP_FREE const char **names = calloc(m->count + 1, sizeof(*names));

    if (!names) {
        return error_nomem(errp);
    }
    for (unsigned i = 0; i < m->count; i++) {
        names[i] = m->disks[i].name;
    }
    qsort(names, m->count, sizeof(*names), compare_names);
    for (unsigned i = 1; i < m->count; i++) {
        if (strcmp(names[i - 1], names[i]) == 0) {
            return error_set(errp, EINVAL, "disk '%s' is there twice",
                             names[i]);
        }
    }
    return 0;
}

/* A parent is always older, so there are no circles. */
static int check_parent(const struct manifest *m, const struct manifest_disk *d,
                        struct error **errp)
{
    if ((d->kind == DISK_FULL) != (d->parent[0] == '\0')) {
        return error_set(errp, EINVAL, "disk '%s' is %s and has %s parent",
                         d->name, kind_words[d->kind],
                         d->parent[0] ? "a" : "no");
    }
    if (d->parent[0] == '\0') {
        return d->parent_hash[0] == '\0'
                   ? 0
                   : error_set(errp, EINVAL,
                               "disk '%s' has the hash of a parent, and none",
                               d->name);
    }
    if (!point_name_valid(d->parent) || !hash_text_valid(d->parent_hash)) {
        return error_set(errp, EINVAL,
                         "the parent of disk '%s', or its hash, is not written "
                         "as one",
                         d->name);
    }
    if (strcmp(d->parent, m->name) >= 0) {
        return error_set(errp, EINVAL,
                         "the parent %s of disk '%s' is not before %s",
                         d->parent, d->name, m->name);
    }
    return 0;
}

static bool too_long(const char *text)
{
    return text && strlen(text) > TEXT_LENGTH_MAX;
}

static int check_disk(const struct manifest *m, const struct manifest_disk *d,
                      struct error **errp)
{
    int r = disk_name_check(d->name, errp);

    if (r < 0) {
        return r;
    }
    if (d->size > BLK_SIZE_MAX || d->read > INT64_MAX ||
        d->written > INT64_MAX || d->zero > INT64_MAX ||
        d->milliseconds > INT64_MAX) {
        return error_set(errp, EINVAL, "disk '%s' has a number that is too big",
                         d->name);
    }
    if (d->kind == DISK_INCREMENT && d->reason != REASON_NONE) {
        return error_set(errp, EINVAL,
                         "disk '%s' is an increment, and has a reason for "
                         "another kind",
                         d->name);
    }
    if (!hash_text_valid(d->sums_hash) || too_long(d->checkpoint) ||
        too_long(d->image)) {
        return error_set(errp, EINVAL,
                         "disk '%s' has no hash, or a text that is too long",
                         d->name);
    }
    return check_parent(m, d, errp);
}

static int check_all(const struct manifest *m, struct error **errp)
{
    if (!point_name_valid(m->name)) {
        return error_set(errp, EINVAL, "'%s' is not the name of a point",
                         m->name);
    }
    if (m->id[0] == '\0' || !only_hex(m->id)) {
        return error_set(errp, EINVAL, "'%s' is not the id of a directory",
                         m->id);
    }
    if (m->xml_hash[0] && !hash_text_valid(m->xml_hash)) {
        return error_set(errp, EINVAL, "the definition's hash is none");
    }
    if (too_long(m->source) || too_long(m->source_version) ||
        too_long(m->program) || too_long(m->agent)) {
        return error_set(errp, EINVAL, "a text has more than %d bytes",
                         TEXT_LENGTH_MAX);
    }
    if (m->count == 0 || m->count > MANIFEST_DISKS) {
        return error_set(errp, EINVAL,
                         "a point has 1 to %d disks, and this one has %u",
                         MANIFEST_DISKS, m->count);
    }
    for (unsigned i = 0; i < m->count; i++) {
        int r = check_disk(m, &m->disks[i], errp);
        if (r < 0) {
            return r;
        }
    }
    return check_unique(m, errp);
}

/* --- Writing --- */

static json_t *disk_json(const struct manifest_disk *d)
{
    return json_pack(
        "{s:s, s:I, s:s, s:s?, s:s?, s:s?, s:s?, s:s?, s:I, s:I, s:I, s:I, "
        "s:s}",
        "name", d->name, "size", (json_int_t)d->size, "kind",
        kind_words[d->kind], "reason", reason_words[d->reason], "parent",
        d->parent[0] ? d->parent : NULL, "parent-sums",
        d->parent_hash[0] ? d->parent_hash : NULL, "checkpoint", d->checkpoint,
        "image", d->image, "read", (json_int_t)d->read, "written",
        (json_int_t)d->written, "zero", (json_int_t)d->zero, "milliseconds",
        (json_int_t)d->milliseconds, "sums", d->sums_hash);
}

static json_t *manifest_json(const struct manifest *m)
{
    json_t *disks = json_array();

    for (unsigned i = 0; disks && i < m->count; i++) {
        if (json_array_append_new(disks, disk_json(&m->disks[i])) < 0) {
            json_decref(disks);
            return NULL;
        }
    }
    return disks
               ? json_pack("{s:i, s:s, s:s, s:I, s:s?, s:s?, s:s?, s:s?, s:s?, "
                           "s:o}",
                           "nbdelta-point", MANIFEST_FORMAT, "name", m->name,
                           "directory", m->id, "time", (json_int_t)m->time,
                           "source", m->source, "source-version",
                           m->source_version, "program", m->program, "agent",
                           m->agent, "definition",
                           m->xml_hash[0] ? m->xml_hash : NULL, "disks", disks)
               : NULL;
}

static char *dump(const json_t *j)
{
    return json_dumps(j, JSON_INDENT(2));
}

int manifest_text(const struct manifest *m, char **text, struct error **errp)
{
    char hash[HASH_TEXT_MAX];
    int r = check_all(m, errp);

    if (r < 0) {
        return r;
    }
    CLEANUP_JSON json_t *j = manifest_json(m);
    CLEANUP_FREE char *plain = j ? dump(j) : NULL;
    if (!plain) {
        return error_set(errp, EINVAL,
                         "no memory, or a text of the manifest is not UTF-8");
    }
    r = hash_of(plain, strlen(plain), hash, errp);
    if (r < 0) {
        return r;
    }
    if (json_object_set_new(j, "sha256", json_string(hash)) < 0) {
        return error_nomem(errp);
    }
    CLEANUP_FREE char *all = dump(j);
    if (!all || asprintf(text, "%s\n", all) < 0) {
        return error_nomem(errp);
    }
    if (strlen(*text) > MANIFEST_MAX) {
        free(*text);
        *text = NULL;
        return error_set(errp, EINVAL, "the manifest has more than %d bytes",
                         MANIFEST_MAX);
    }
    return 0;
}

/* --- Reading --- */

static int refuse(const char *key, const char *why, struct error **errp)
{
    return error_set(errp, EINVAL, "the manifest's \"%s\" %s", key, why);
}

static int take_number(json_t *from, const char *key, uint64_t *n,
                       struct error **errp)
{
    json_t *j = json_object_get(from, key);

    if (!json_is_integer(j) || json_integer_value(j) < 0) {
        return refuse(key, "is missing, or not a number from 0 on", errp);
    }
    *n = (uint64_t)json_integer_value(j);
    return 0;
}

/* *s is within @from; NULL: it is null. */
static int peek_text(json_t *from, const char *key, bool or_null,
                     const char **s, struct error **errp)
{
    json_t *j = json_object_get(from, key);

    if (!json_is_string(j) && !(or_null && json_is_null(j))) {
        return refuse(key, "is missing, or not a string", errp);
    }
    *s = json_string_value(j);
    return 0;
}

static int take_text(json_t *from, const char *key, char **s,
                     struct error **errp)
{
    const char *found = NULL;
    int r = peek_text(from, key, true, &found, errp);

    if (r == 0 && found && !(*s = strdup(found))) {
        return error_nomem(errp);
    }
    return r;
}

/* Into an array of @max bytes; null becomes "". */
static int take_short(json_t *from, const char *key, bool or_null, char *out,
                      size_t max, struct error **errp)
{
    const char *found = NULL;
    int r = peek_text(from, key, or_null, &found, errp);

    if (r < 0) {
        return r;
    }
    if (found && (strlen(found) >= max || found[0] == '\0')) {
        return refuse(key, "is too long, or empty", errp);
    }
    (void)snprintf(out, max, "%s", found ? found : "");
    return 0;
}

static int take_kind(json_t *from, enum disk_kind *kind, struct error **errp)
{
    const char *word = NULL;
    int r = peek_text(from, "kind", false, &word, errp);

    for (size_t i = 0; r == 0 && i < ARRAY_SIZE(kind_words); i++) {
        if (strcmp(word, kind_words[i]) == 0) {
            *kind = (enum disk_kind)i;
            return 0;
        }
    }
    return r < 0 ? r
                 : refuse("kind", "is not full, increment or compared", errp);
}

static int take_reason(json_t *from, enum disk_reason *reason,
                       struct error **errp)
{
    const char *word = NULL;
    int r = peek_text(from, "reason", true, &word, errp);

    *reason = REASON_NONE;
    if (r == 0 && word && !disk_reason_from(word, reason)) {
        return refuse("reason", "is none that we know", errp);
    }
    return r;
}

#define DISK_MEMBERS  13
#define POINT_MEMBERS 11 /* with "sha256" */

static int read_disk(struct manifest *m, json_t *j, struct error **errp)
{
    const char *name = NULL;
    int r;

    if (!json_is_object(j) || json_object_size(j) != DISK_MEMBERS) {
        return refuse("disks", "has one with more or fewer members than a disk",
                      errp);
    }
    r = peek_text(j, "name", false, &name, errp);
    struct manifest_disk *d = r == 0 ? manifest_add(m, name) : NULL;
    if (!d) {
        return r < 0 ? r : error_nomem(errp);
    }
    (void)((r = take_number(j, "size", &d->size, errp)) < 0 ||
           (r = take_kind(j, &d->kind, errp)) < 0 ||
           (r = take_reason(j, &d->reason, errp)) < 0 ||
           (r = take_short(j, "parent", true, d->parent, sizeof(d->parent),
                           errp)) < 0 ||
           (r = take_short(j, "parent-sums", true, d->parent_hash,
                           sizeof(d->parent_hash), errp)) < 0 ||
           (r = take_text(j, "checkpoint", &d->checkpoint, errp)) < 0 ||
           (r = take_text(j, "image", &d->image, errp)) < 0 ||
           (r = take_number(j, "read", &d->read, errp)) < 0 ||
           (r = take_number(j, "written", &d->written, errp)) < 0 ||
           (r = take_number(j, "zero", &d->zero, errp)) < 0 ||
           (r = take_number(j, "milliseconds", &d->milliseconds, errp)) < 0 ||
           (r = take_short(j, "sums", false, d->sums_hash, sizeof(d->sums_hash),
                           errp)) < 0);
    return r;
}

static int read_disks(struct manifest *m, json_t *from, struct error **errp)
{
    json_t *disks = json_object_get(from, "disks");

    if (!json_is_array(disks) || json_array_size(disks) > MANIFEST_DISKS) {
        return refuse("disks", "is missing, or not an array, or too long",
                      errp);
    }
    for (size_t i = 0; i < json_array_size(disks); i++) {
        int r = read_disk(m, json_array_get(disks, i), errp);
        if (r < 0) {
            return r;
        }
    }
    return 0;
}

static int read_point(struct manifest *m, json_t *j, struct error **errp)
{
    uint64_t time = 0;
    int r;

    if (json_object_size(j) != POINT_MEMBERS) {
        return error_set(errp, EINVAL,
                         "the manifest has more or fewer members than one of "
                         "format %d",
                         MANIFEST_FORMAT);
    }
    (void)((r = take_short(j, "name", false, m->name, sizeof(m->name), errp)) <
               0 ||
           (r = take_short(j, "directory", false, m->id, sizeof(m->id), errp)) <
               0 ||
           (r = take_number(j, "time", &time, errp)) < 0 ||
           (r = take_text(j, "source", &m->source, errp)) < 0 ||
           (r = take_text(j, "source-version", &m->source_version, errp)) < 0 ||
           (r = take_text(j, "program", &m->program, errp)) < 0 ||
           (r = take_text(j, "agent", &m->agent, errp)) < 0 ||
           (r = take_short(j, "definition", true, m->xml_hash,
                           sizeof(m->xml_hash), errp)) < 0 ||
           (r = read_disks(m, j, errp)) < 0);
    m->time = (int64_t)time;
    return r;
}

/* The format is looked at first: one that is newer may have anything else. */
static int check_format(json_t *j, struct error **errp)
{
    json_t *format = json_object_get(j, "nbdelta-point");

    if (!json_is_integer(format) || json_integer_value(format) < 1) {
        return error_set(errp, EINVAL, "it is not a manifest of nbdelta");
    }
    if (json_integer_value(format) > MANIFEST_FORMAT) {
        return error_set(errp, EINVAL,
                         "the manifest has format %lld, and this nbdelta "
                         "knows %d",
                         (long long)json_integer_value(format),
                         MANIFEST_FORMAT);
    }
    return 0;
}

/* Is @text what @m becomes when it is written? */
static int check_text(const struct manifest *m, const char *text, size_t length,
                      struct error **errp)
{
    CLEANUP_FREE char *again = NULL;
    int r = manifest_text(m, &again, errp);

    if (r < 0) {
        return r;
    }
    if (strlen(again) != length || memcmp(again, text, length) != 0) {
        return error_set(errp, EUCLEAN,
                         "the manifest is damaged: its own hash differs");
    }
    return 0;
}

int manifest_parse(const char *text, size_t length, struct manifest **mp,
                   struct error **errp)
{
    json_error_t where;

    if (length > MANIFEST_MAX) {
        return error_set(errp, EINVAL, "the manifest has more than %d bytes",
                         MANIFEST_MAX);
    }
    CLEANUP_JSON json_t *j = json_loadb(text, length, JSON_REJECT_DUPLICATES,
                                        &where);
    if (!json_is_object(j)) {
        return error_set(errp, EINVAL, "the manifest is not JSON: %s",
                         j ? "not an object" : where.text);
    }
    int r = check_format(j, errp);
    if (r < 0) {
        return r;
    }
    CLEANUP_MANIFEST struct manifest *m = manifest_new();
    if (!m) {
        return error_nomem(errp);
    }
    r = read_point(m, j, errp);
    r = r < 0 ? r : check_text(m, text, length, errp);
    if (r == 0) {
        *mp = m;
        m = NULL;
    }
    return r;
}
