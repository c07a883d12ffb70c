/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Help about commands of a monitor: see qmp-help.h.
 *
 *     Arguments:
 *       device          string
 *       sync            top, full, none, incremental or bitmap
 *       x-perf          optional object
 *         max-workers   optional integer
 *
 * Types have no names that a person knows, so members stand below what has
 * them, and the second time there is the name of the place above.
 */
#include "cli/qmp-help.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "args.h"
#include "client/schema.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/text.h"

#define COLUMNS     79
#define TYPE_COLUMN 24  /* where types stand, if names are short */
#define DEPTH_MAX   16  /* of members below members */
#define ARRAYS_MAX  4   /* of arrays of arrays */
#define TEXT_MAX    200 /* bytes of a name that are printed */
#define FEW_WORDS   8

struct page {
    const struct schema *schema;
    FILE *out;
    json_t *told; /* name of a type -> where its members or words stand */
    bool failed;  /* no memory */
    int column;
    int indent; /* of a line that goes on */
};

/* --- Words. --- */

static void put(struct page *p, const char *text)
{
    char shown[TEXT_MAX + 1] = "";

    memcpy(shown, text, strnlen(text, TEXT_MAX));
    text_make_printable(shown);
    (void)fputs(shown, p->out);
    p->column += (int)strlen(shown);
}

static void start_line(struct page *p, int column)
{
    (void)fprintf(p->out, "\n%*s", column, "");
    p->column = column;
}

/* Put @text behind a blank, or on the next line. */
static void put_word(struct page *p, const char *text, const char *tail)
{
    size_t len = strnlen(text, TEXT_MAX) + strlen(tail) + 1;

    if (p->column + (int)len > COLUMNS && p->column > p->indent) {
        start_line(p, p->indent);
    } else {
        put(p, " ");
    }
    put(p, text);
    put(p, tail);
}

/* What separates item @i of @n from the next one. */
static const char *separator(size_t i, size_t n)
{
    return i + 2 < n ? "," : i + 2 == n ? " or" : "";
}

/* Where the type @name was told, or NULL: it is told now, at @place. */
static const char *told_at(struct page *p, const char *name, const char *place)
{
    const char *known = member_str(p->told, name);

    if (!known) {
        p->failed |= json_object_set_new(p->told, name,
                                         json_string_nocheck(place)) < 0;
    }
    return known;
}

static void put_place(struct page *p, const char *place)
{
    put_word(p, "(see", "");
    put_word(p, place, " above)");
}

/* --- Types. --- */

static void put_enum(struct page *p, const json_t *e, const char *place)
{
    const json_t *list = schema_words(e);
    size_t i;
    json_t *item;
    size_t n = json_array_size(list);
    const char *known = n > FEW_WORDS ? told_at(p, member_str(e, "name"), place)
                                      : NULL;
    if (known) {
        put_word(p, "one of many words", "");
        put_place(p, known);
        return;
    }
    json_array_foreach (list, i, item) {
        const char *word = schema_word(item);

        put_word(p, word ? word : "?", separator(i, n));
    }
}

static const char *builtin_name(const json_t *e)
{
    const char *type = member_str(e, "json-type");

    return !type                        ? "value"
           : strcmp(type, "int") == 0   ? "integer"
           : strcmp(type, "value") == 0 ? "any value"
                                        : type;
}

/* What the type of a member turns out to be, arrays taken off. */
static const json_t *put_arrays(struct page *p, const json_t *e)
{
    for (int i = 0; e && strcmp(member_str(e, "meta-type"), "array") == 0;
         i++) {
        if (i == ARRAYS_MAX) {
            return NULL;
        }
        put_word(p, "array of", "");
        e = schema_follow(p->schema, e, "element-type", NULL);
    }
    return e;
}

/* Put a type in a few words.  The object whose members have to be told below,
 * or NULL. */
static const json_t *put_type(struct page *p, const json_t *e,
                              const char *place, const char *tail)
{
    const char *meta = member_str(e, "meta-type");
    const char *name = member_str(e, "name");
    const char *known;

    if (!meta) {
        put_word(p, "value of a type that is not described", tail);
    } else if (strcmp(meta, "builtin") == 0) {
        put_word(p, builtin_name(e), tail);
    } else if (strcmp(meta, "enum") == 0) {
        put_enum(p, e, place);
        put(p, tail);
    } else if (strcmp(meta, "object") != 0) {
        put_word(p, meta, tail);
    } else if ((known = told_at(p, name, place))) {
        put_word(p, "object", "");
        put_place(p, known);
        put(p, tail);
    } else {
        put_word(p, "object", tail);
        return e;
    }
    return NULL;
}

static void put_members(struct page *p, const json_t *object, int depth);

static void put_below(struct page *p, const json_t *object, int depth)
{
    if (object && depth < DEPTH_MAX) {
        put_members(p, object, depth);
    } else if (object) {
        start_line(p, 2 * depth);
        put(p, "...");
    }
}

/* The alternatives of a value, then the members of those that are objects. */
static void put_alternate(struct page *p, const json_t *e, const char *place,
                          int depth)
{
    const json_t *list = json_object_get(e, "members");
    const char *known = told_at(p, member_str(e, "name"), place);
    CLEANUP_JSON json_t *below = json_array();
    size_t n = json_array_size(list);
    size_t i;
    json_t *item;

    if (known) {
        put_word(p, "one of several types", "");
        put_place(p, known);
        return;
    }
    json_array_foreach (list, i, item) {
        const json_t *type = schema_follow(p->schema, item, "type", NULL);
        const json_t *object = put_type(p, put_arrays(p, type), place,
                                        separator(i, n));

        if (object) {
            p->failed |= json_array_append(below, (json_t *)(uintptr_t)object) <
                         0;
        }
    }
    json_array_foreach (below, i, item) {
        put_below(p, item, depth + 1);
    }
}

static void put_features(struct page *p, const json_t *entry)
{
    if (schema_has_feature(entry, "deprecated")) {
        put_word(p, "(deprecated)", "");
    }
    if (schema_has_feature(entry, "unstable")) {
        put_word(p, "(unstable)", "");
    }
}

static void put_value(struct page *p, const json_t *type, const json_t *member,
                      const char *place, int depth)
{
    const char *meta;

    p->indent = p->column < COLUMNS / 2 ? p->column + 1 : COLUMNS / 2;
    put_features(p, member);
    if (json_object_get(member, "default")) {
        put_word(p, "optional", "");
    }
    type = put_arrays(p, type);
    meta = member_str(type, "meta-type");
    if (meta && strcmp(meta, "alternate") == 0) {
        put_alternate(p, type, place, depth);
    } else {
        put_below(p, put_type(p, type, place, ""), depth + 1);
    }
}

static void put_member(struct page *p, const json_t *member, int depth)
{
    const char *name = member_str(member, "name");

    start_line(p, 2 * depth);
    put(p, name ? name : "?");
    if (p->column < TYPE_COLUMN - 1) {
        (void)fprintf(p->out, "%*s", TYPE_COLUMN - 1 - p->column, "");
        p->column = TYPE_COLUMN - 1;
    }
    put_value(p, schema_follow(p->schema, member, "type", NULL), member,
              name ? name : "?", depth);
}

static void put_variant(struct page *p, const json_t *object,
                        const json_t *variant, int depth)
{
    const json_t *type = schema_follow(p->schema, variant, "type", "object");
    const char *tag = member_str(object, "tag");
    const char *word = member_str(variant, "case");

    if (!type || (json_array_size(json_object_get(type, "members")) == 0 &&
                  !json_object_get(type, "variants"))) {
        return; /* it adds nothing */
    }
    char place[2 * TEXT_MAX + 2];
    (void)snprintf(place, sizeof(place), "%.*s=%.*s", TEXT_MAX, tag ? tag : "?",
                   TEXT_MAX, word ? word : "?");
    start_line(p, 2 * depth);
    p->indent = 2 * depth;
    put(p, "with ");
    put(p, place);
    const char *known = told_at(p, member_str(type, "name"), place);
    if (known) {
        put_place(p, known);
    } else {
        put_below(p, type, depth + 1);
    }
}

static void put_members(struct page *p, const json_t *object, int depth)
{
    size_t i;
    json_t *item;

    json_array_foreach (json_object_get(object, "members"), i, item) {
        put_member(p, item, depth);
    }
    json_array_foreach (json_object_get(object, "variants"), i, item) {
        put_variant(p, object, item, depth);
    }
}

/* --- Pages. --- */

static void put_section(struct page *p, const char *title, const json_t *entry,
                        const char *key)
{
    const json_t *type = schema_follow(p->schema, entry, key, NULL);
    const char *meta = member_str(type, "meta-type");

    (void)fprintf(p->out, "\n\n%s:", title);
    if (meta && strcmp(meta, "object") == 0) {
        if (json_array_size(json_object_get(type, "members")) == 0) {
            start_line(p, 2);
            put(p, "none");
        }
        (void)told_at(p, member_str(type, "name"), title);
        put_members(p, type, 1);
    } else {
        start_line(p, 1);
        put_value(p, type, NULL, title, 1);
    }
}

static bool is_told_of(const json_t *e)
{
    const char *meta = member_str(e, "meta-type");

    return strcmp(meta, "command") == 0 || strcmp(meta, "event") == 0;
}

int qmp_help_print(const struct schema *s, const char *name, FILE *out,
                   struct nearest *near)
{
    struct page p = {.schema = s, .out = out};
    const json_t *e = schema_find(s, name, NULL);
    const char *key;
    json_t *other;

    nearest_begin(near, name);
    if (!e || !is_told_of(e)) {
        json_object_foreach (s->entries, key, other) {
            if (is_told_of(other)) {
                nearest_try(near, key);
            }
        }
        return -ENOENT;
    }
    p.told = json_object();
    p.failed = !p.told;
    put(&p, name);
    if (strcmp(member_str(e, "meta-type"), "event") == 0) {
        put(&p, " (event)");
        put_features(&p, e);
        put_section(&p, "Data", e, "arg-type");
    } else {
        put_features(&p, e);
        put_section(&p, "Arguments", e, "arg-type");
        put_section(&p, "Returns", e, "ret-type");
    }
    (void)fputc('\n', out);
    json_decref(p.told);
    return p.failed ? -ENOMEM : 0;
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static int list_of(const struct schema *s, const char *meta, FILE *out)
{
    CLEANUP_FREE const char **names = NULL;
    size_t n = 0;
    const char *key;
    json_t *entry;

    names = calloc(json_object_size(s->entries) + 1, sizeof(*names));
    if (!names) {
        return -ENOMEM;
    }
    json_object_foreach (s->entries, key, entry) {
        if (strcmp(member_str(entry, "meta-type"), meta) == 0) {
            names[n++] = key;
        }
    }
    qsort((void *)names, n, sizeof(*names), compare_names);
    struct page p = {.out = out};
    for (size_t i = 0; i < n; i++) {
        start_line(&p, 2);
        put(&p, names[i]);
    }
    return 0;
}

int qmp_help_list(const struct schema *s, FILE *out)
{
    (void)fputs("Commands:", out);
    int r = list_of(s, "command", out);
    (void)fputs("\n\nEvents:", out);
    r = r < 0 ? r : list_of(s, "event", out);
    (void)fputs("\n", out);
    return r;
}

/* --- What was misspelt. --- */

static void try_name(const char *name, void *near)
{
    nearest_try(near, name);
}

bool qmp_help_misspelt(const struct schema *s, const char *command,
                       const json_t *args, const char **unknown,
                       struct nearest *near)
{
    const json_t *e = schema_find(s, command, "command");
    const json_t *object = schema_follow(s, e, "arg-type", "object");
    const char *key;
    json_t *value;

    nearest_begin(near, command);
    *unknown = NULL;
    if (!e) {
        json_object_foreach (s->entries, key, value) {
            if (strcmp(member_str(value, "meta-type"), "command") == 0) {
                nearest_try(near, key);
            }
        }
        return true;
    }
    json_object_foreach ((json_t *)(uintptr_t)args, key, value) {
        if (object && !schema_has_member(s, object, args, key)) {
            *unknown = key;
            nearest_begin(near, key);
            schema_each_member(s, object, args, try_name, near);
            return true;
        }
    }
    return false;
}
