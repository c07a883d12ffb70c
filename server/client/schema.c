/* SPDX-License-Identifier: BSD-3-Clause */
/* A monitor's schema, by names: see schema.h. */
#include "client/schema.h"

#include <errno.h>
#include <string.h>

#include "args.h"
#include "client/qmp-client.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/text.h"

int schema_take(struct schema *s, const json_t *list, struct error **errp)
{
    size_t i;
    json_t *entry;

    s->entries = json_object();
    if (!s->entries) {
        return error_nomem(errp);
    }
    if (!json_is_array(list)) {
        return error_set(errp, EPROTO, "the schema of the monitor is no list");
    }
    json_array_foreach (list, i, entry) {
        const char *name = member_str(entry, "name");

        if (!name || !member_str(entry, "meta-type")) {
            return error_set(errp, EPROTO,
                             "entry %zu of the monitor's schema has no name, "
                             "or does not say what it is",
                             i);
        }
        if (json_object_set(s->entries, name, entry) < 0) {
            return error_nomem(errp);
        }
    }
    return 0;
}

int schema_ask(struct schema *s, struct qmp_client *c, struct error **errp)
{
    CLEANUP_JSON json_t *reply = NULL;
    int r = qmp_client_request(c, "query-qmp-schema", NULL, &reply, errp);

    if (r < 0) {
        return r;
    }
    if (!json_object_get(reply, "return")) {
        const char *why = member_str(json_object_get(reply, "error"), "desc");
        CLEANUP_FREE char *text = text_printable(why ? why : "no reason");

        return error_set(errp, ENOTSUP,
                         "the monitor does not tell its commands: %s",
                         text ? text : "");
    }
    return schema_take(s, json_object_get(reply, "return"), errp);
}

void schema_free(struct schema *s)
{
    json_decref(s->entries);
    s->entries = NULL;
}

const json_t *schema_find(const struct schema *s, const char *name,
                          const char *meta)
{
    const json_t *e = name ? json_object_get(s->entries, name) : NULL;
    const char *is = member_str(e, "meta-type");

    return e && (!meta || strcmp(is, meta) == 0) ? e : NULL;
}

const json_t *schema_follow(const struct schema *s, const json_t *entry,
                            const char *key, const char *meta)
{
    return schema_find(s, member_str(entry, key), meta);
}

/* --- Members. --- */

static void each_in_list(const json_t *object,
                         void (*fn)(const char *name, void *opaque),
                         void *opaque)
{
    const json_t *list = json_object_get(object, "members");
    size_t i;
    json_t *member;

    json_array_foreach (list, i, member) {
        const char *name = member_str(member, "name");

        if (name) {
            fn(name, opaque);
        }
    }
}

/* What the variant of @object that @args says adds, or NULL. */
static const json_t *variant_of(const struct schema *s, const json_t *object,
                                const json_t *args)
{
    const char *tag = member_str(object, "tag");
    const char *is = tag ? member_str(args, tag) : NULL;
    const json_t *list = json_object_get(object, "variants");
    size_t i;
    json_t *variant;

    json_array_foreach (list, i, variant) {
        const char *word = member_str(variant, "case");

        if (is && word && strcmp(is, word) == 0) {
            return schema_follow(s, variant, "type", "object");
        }
    }
    return NULL;
}

/* Variants may have variants; QEMU's are two deep. */
#define VARIANTS_MAX 8

void schema_each_member(const struct schema *s, const json_t *object,
                        const json_t *args,
                        void (*fn)(const char *name, void *opaque),
                        void *opaque)
{
    for (int i = 0; object && i < VARIANTS_MAX; i++) {
        each_in_list(object, fn, opaque);
        object = variant_of(s, object, args);
    }
}

static const json_t *find_in_list(const json_t *object, const char *name)
{
    const json_t *list = json_object_get(object, "members");
    size_t i;
    json_t *member;

    json_array_foreach (list, i, member) {
        const char *is = member_str(member, "name");

        if (is && strcmp(is, name) == 0) {
            return member;
        }
    }
    return NULL;
}

const json_t *schema_member(const struct schema *s, const json_t *object,
                            const json_t *args, const char *name)
{
    const json_t *found = NULL;

    for (int i = 0; object && !found && i < VARIANTS_MAX; i++) {
        found = find_in_list(object, name);
        object = variant_of(s, object, args);
    }
    return found;
}

bool schema_has_member(const struct schema *s, const json_t *object,
                       const json_t *args, const char *name)
{
    return schema_member(s, object, args, name) != NULL;
}

/* --- Words. --- */

/* Newer monitors have "members", with features; older ones "values" alone. */
const json_t *schema_words(const json_t *entry)
{
    const json_t *list = json_object_get(entry, "members");

    return json_is_array(list) ? list : json_object_get(entry, "values");
}

const char *schema_word(const json_t *item)
{
    return json_is_string(item) ? json_string_value(item)
                                : member_str(item, "name");
}

bool schema_has_feature(const json_t *entry, const char *name)
{
    const json_t *list = json_object_get(entry, "features");
    size_t i;
    json_t *feature;

    json_array_foreach (list, i, feature) {
        const char *is = json_string_value(feature);

        if (is && strcmp(is, name) == 0) {
            return true;
        }
    }
    return false;
}
