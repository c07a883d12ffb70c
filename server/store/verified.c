/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * POINT.verified: when the files of a point were verified, and with what
 * result.
 *
 *     {"parts": [time, time, ...],
 *      "damage": [{"part": 0, "disk": "vda", "offset": 0, "bytes": 1048576,
 *                  "lost": true}]}
 *
 * "lost" is there where healing has found the bytes nowhere.
 *
 * A verification of part N of M replaces what is known of that part, if there
 * were M parts before; else all parts begin anew.  The file is a note: one that
 * cannot be read says that nothing is known.
 */
#include "store/verified.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "store/verify.h"

#define NOTE_MAX MiB
/* Damage that is kept; the rest only counts. */
#define DAMAGE_MAX 1000

static void note_file(const char *point, char *name, size_t max)
{
    (void)snprintf(name, max, "%s.verified", point);
}

/* Is it a note?  Each part a time, each damage in a part. */
static bool is_note(const json_t *j)
{
    const json_t *parts = json_object_get(j, "parts");
    const json_t *damage = json_object_get(j, "damage");
    size_t i;
    const json_t *v;

    if (!json_is_array(parts) || !json_is_array(damage) ||
        json_array_size(parts) == 0 ||
        json_array_size(parts) > VERIFY_PARTS_MAX) {
        return false;
    }
    for (i = 0; i < json_array_size(parts); i++) {
        v = json_array_get(parts, i);
        if (!json_is_integer(v) || json_integer_value(v) < 0) {
            return false;
        }
    }
    for (i = 0; i < json_array_size(damage); i++) {
        v = json_array_get(damage, i);
        const json_t *part = json_object_get(v, "part");
        if (!json_is_integer(part) ||
            !json_is_string(json_object_get(v, "disk")) ||
            json_integer_value(part) < 0 ||
            (size_t)json_integer_value(part) >= json_array_size(parts)) {
            return false;
        }
    }
    return true;
}

/* A new reference, or NULL: nothing is known. */
static json_t *read_note(const struct store *s, const char *point)
{
    char name[POINT_NAME_MAX + 16];
    CLEANUP_FREE char *text = NULL;
    size_t length = 0;

    note_file(point, name, sizeof(name));
    if (store_get_file(s, name, NOTE_MAX, &text, &length, NULL) < 0) {
        return NULL;
    }
    json_t *j = json_loadb(text, length, JSON_REJECT_DUPLICATES, NULL);
    if (j && !is_note(j)) {
        json_decref(j);
        return NULL;
    }
    return j;
}

static bool is_lost(const json_t *damage)
{
    return json_is_true(json_object_get(damage, "lost"));
}

static bool is_of(const json_t *damage, const char *disk)
{
    return strcmp(json_string_value(json_object_get(damage, "disk")), disk) ==
           0;
}

void verified_read(const struct store *s, const char *point, struct verified *v)
{
    CLEANUP_JSON json_t *j = read_note(s, point);
    const json_t *parts = json_object_get(j, "parts");

    *v = (struct verified){.when = 0};
    for (size_t i = 0; i < json_array_size(parts); i++) {
        int64_t when = json_integer_value(json_array_get(parts, i));
        v->when = i == 0 || when < v->when ? when : v->when;
    }
    v->damages = json_array_size(json_object_get(j, "damage"));
    for (size_t i = 0; i < v->damages; i++) {
        v->lost += is_lost(json_array_get(json_object_get(j, "damage"), i));
    }
}

/* Is anything of the disk damaged?  With @hope: and not marked as lost. */
static bool any_damage(const struct store *s, const char *point,
                       const char *disk, bool hope)
{
    CLEANUP_JSON json_t *j = read_note(s, point);
    const json_t *damage = json_object_get(j, "damage");

    for (size_t i = 0; i < json_array_size(damage); i++) {
        const json_t *d = json_array_get(damage, i);

        if (is_of(d, disk) && !(hope && is_lost(d))) {
            return true;
        }
    }
    return false;
}

bool verified_damaged(const struct store *s, const char *point,
                      const char *disk)
{
    return any_damage(s, point, disk, false);
}

bool verified_hopes(const struct store *s, const char *point, const char *disk)
{
    return any_damage(s, point, disk, true);
}

/* --- Writing --- */

/* With @count parts of which nothing is known. */
static json_t *empty_note(unsigned count)
{
    json_t *j = json_pack("{s:[], s:[]}", "parts", "damage");

    for (unsigned i = 0; j && i < count; i++) {
        if (json_array_append_new(json_object_get(j, "parts"),
                                  json_integer(0)) < 0) {
            json_decref(j);
            return NULL;
        }
    }
    return j;
}

static void forget_part(json_t *damage, unsigned part)
{
    for (size_t i = json_array_size(damage); i > 0; i--) {
        const json_t *d = json_array_get(damage, i - 1);

        if (json_integer_value(json_object_get(d, "part")) == part) {
            (void)json_array_remove(damage, i - 1);
        }
    }
}

int verified_add(json_t *found, const char *disk, uint64_t offset,
                 uint64_t bytes)
{
    if (json_array_size(found) >= DAMAGE_MAX) {
        return 0;
    }
    return json_array_append_new(found,
                                 json_pack("{s:s, s:I, s:I}", "disk", disk,
                                           "offset", (json_int_t)offset,
                                           "bytes", (json_int_t)bytes)) < 0
               ? -ENOMEM
               : 0;
}

static int write_note(const struct store *s, const char *point, const json_t *j,
                      struct error **errp)
{
    char name[POINT_NAME_MAX + 16];
    CLEANUP_FREE char *text = json_dumps(j, JSON_INDENT(1));

    if (!text) {
        return error_nomem(errp);
    }
    note_file(point, name, sizeof(name));
    return store_put_file(s, name, text, strlen(text), errp);
}

/* Damage of part @part is @found from now on, or, with @add, too. */
static int set_damage(json_t *j, unsigned part, json_t *found, bool add)
{
    json_t *damage = json_object_get(j, "damage");

    if (!add) {
        forget_part(damage, part);
    }
    for (size_t i = 0; i < json_array_size(found); i++) {
        json_t *d = json_array_get(found, i);
        if (json_object_set_new(d, "part", json_integer(part)) < 0) {
            return -ENOMEM;
        }
    }
    if (json_array_size(damage) > DAMAGE_MAX) {
        return 0;
    }
    return json_array_extend(damage, found) < 0 ? -ENOMEM : 0;
}

int verified_write(const struct store *s, const char *point, unsigned part,
                   unsigned parts, json_t *found, struct error **errp)
{
    CLEANUP_JSON json_t *j = read_note(s, point);

    if (!j || json_array_size(json_object_get(j, "parts")) != parts) {
        json_decref(j);
        j = empty_note(parts);
    }
    if (!j || set_damage(j, part, found, false) < 0 ||
        json_array_set_new(json_object_get(j, "parts"), part,
                           json_integer(time(NULL))) < 0) {
        return error_nomem(errp);
    }
    return write_note(s, point, j, errp);
}

int verified_damage(const struct store *s, const char *point, json_t *found,
                    struct error **errp)
{
    CLEANUP_JSON json_t *j = read_note(s, point);

    if (!j) {
        j = empty_note(1);
    }
    return !j || set_damage(j, 0, found, true) < 0
               ? error_nomem(errp)
               : write_note(s, point, j, errp);
}

int verified_lost(const struct store *s, const char *point, const char *disk,
                  json_t *lost, struct error **errp)
{
    CLEANUP_JSON json_t *j = read_note(s, point);
    json_t *damage = json_object_get(j, "damage");

    for (size_t i = json_array_size(damage); i > 0; i--) {
        if (is_of(json_array_get(damage, i - 1), disk)) {
            (void)json_array_remove(damage, i - 1);
        }
    }
    for (size_t i = 0; i < json_array_size(lost); i++) {
        if (json_object_set_new(json_array_get(lost, i), "lost", json_true()) <
            0) {
            return error_nomem(errp);
        }
    }
    return !j || set_damage(j, 0, lost, true) < 0
               ? error_nomem(errp)
               : write_note(s, point, j, errp);
}
