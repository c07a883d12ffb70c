/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What a monitor has: see ask.h.
 *
 * The keys of a command's arguments are where the dots of what was typed lead:
 *
 *     blockdev-add --arg-type--> {driver, node-name, ..., file}
 *                                                           | "file."
 *                                    {driver, filename} <---+
 *
 * At each step the variant counts that KEY=VALUE words before have chosen.
 */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "args.h"
#include "client/qmp-client.h"
#include "client/schema.h"
#include "complete/aside.h"
#include "complete/ask.h"
#include "complete/offer.h"
#include "nbdelta/cleanup.h"
#include "qmp/parse.h"

/* --- Asking --- */

/* A monitor takes one client at a time: a shell's is there for one question. */
static bool talk_to(struct qmp_client *c, const struct ask_monitor *m)
{
    CLEANUP_FREE char *path = ask_path(m->socket);
    struct stat st;

    c->limits = &qmp_limits_known;
    c->limit_ms = aside_ms();
    return path && stat(path, &st) == 0 && S_ISSOCK(st.st_mode) &&
           qmp_client_open(c, path, NULL) == 0;
}

static bool learn(struct schema *s, const struct ask_monitor *m)
{
    struct qmp_client c = QMP_CLIENT_INIT;
    bool known = talk_to(&c, m) && schema_ask(s, &c, NULL) == 0;

    qmp_client_close(&c);
    return known;
}

/* Offer the member @key of each item of what @command returns. */
static void offer_items(struct offers *o, const struct ask_monitor *m,
                        const char *command, const char *key,
                        const char *about_key)
{
    struct qmp_client c = QMP_CLIENT_INIT;
    CLEANUP_JSON json_t *reply = NULL;
    size_t i;
    json_t *item;

    if (talk_to(&c, m) &&
        qmp_client_request(&c, command, NULL, &reply, NULL) == 0) {
        json_array_foreach (json_object_get(reply, "return"), i, item) {
            const char *name = member_str(item, key);

            if (name && name[0] != '#') {
                offer(o, name, member_str(item, about_key));
            }
        }
    }
    qmp_client_close(&c);
}

void ask_nodes(struct offers *o, const void *monitor)
{
    offer_items(o, monitor, "query-named-block-nodes", "node-name", "file");
}

void ask_jobs(struct offers *o, const void *monitor)
{
    offer_items(o, monitor, "query-jobs", "id", "type");
}

void ask_backups(struct offers *o, const void *monitor)
{
    offer_items(o, monitor, "query-backups", "id", "instant");
}

void ask_checkpoints(struct offers *o, const void *monitor)
{
    offer_items(o, monitor, "checkpoint-list", "name", "instant");
}

/* --- Commands and events --- */

static void offer_entries(struct offers *o, const struct schema *s,
                          const char *meta)
{
    const char *name;
    json_t *entry;

    json_object_foreach (s->entries, name, entry) {
        if (schema_find(s, name, meta)) {
            offer(o, name,
                  schema_has_feature(entry, "deprecated") ? "deprecated"
                  : schema_has_feature(entry, "unstable") ? "unstable"
                                                          : meta);
        }
    }
}

static void ask_entries(struct offers *o, const struct ask_monitor *m,
                        bool commands, bool events)
{
    struct schema s = SCHEMA_INIT;

    if (learn(&s, m)) {
        if (commands) {
            offer_entries(o, &s, "command");
        }
        if (events) {
            offer_entries(o, &s, "event");
        }
    }
    schema_free(&s);
}

void ask_commands(struct offers *o, const void *monitor)
{
    offer(o, "help", "what there is, and what it takes");
    ask_entries(o, monitor, true, false);
}

void ask_help_topics(struct offers *o, const void *monitor)
{
    ask_entries(o, monitor, true, true);
}

void ask_events(struct offers *o, const void *monitor)
{
    ask_entries(o, monitor, false, true);
}

/* --- Keys and values --- */

struct keys {
    struct offers *o;
    const struct schema *schema;
    const struct ask_monitor *monitor;
    const json_t *object; /* whose members are keys */
    json_t *args;         /* what is known of it already */
    const char *prefix;   /* dotted, of its members */
    size_t prefix_len;
};

/* The words that give scalar members of what @k->prefix says. */
static json_t *args_below(const struct ask_monitor *m, const char *prefix,
                          size_t len)
{
    json_t *args = json_object();

    for (size_t i = 0; i < m->count; i++) {
        const char *word = m->words[i];
        const char *key = word + len;
        size_t n = strncmp(word, prefix, len) == 0 ? strcspn(key, ".=") : 0;

        if (n > 0 && key[n] == '=') {
            CLEANUP_FREE char *name = strndup(key, n);
            (void)(name &&
                   json_object_set_new(args, name, json_string(key + n + 1)));
        }
    }
    return args;
}

static bool is_meta(const json_t *type, const char *meta)
{
    const char *is = member_str(type, "meta-type");

    return is && strcmp(is, meta) == 0;
}

/* The object that a value of @type may be, or NULL. */
static const json_t *object_of(const struct schema *s, const json_t *type)
{
    const json_t *list = json_object_get(type, "members");
    size_t i;
    json_t *each;

    if (is_meta(type, "object")) {
        return type;
    }
    if (!is_meta(type, "alternate")) {
        return NULL;
    }
    json_array_foreach (list, i, each) {
        const json_t *object = schema_follow(s, each, "type", "object");

        if (object) {
            return object;
        }
    }
    return NULL;
}

/* The type of the member that the first @len bytes of @name are. */
static const json_t *member_type(const struct keys *k, const char *name,
                                 size_t len)
{
    CLEANUP_FREE char *copy = strndup(name, len);

    return copy ? schema_follow(
                      k->schema,
                      schema_member(k->schema, k->object, k->args, copy),
                      "type", NULL)
                : NULL;
}

/* Go from k->object to where the dots of k->prefix lead. */
static void follow_dots(struct keys *k)
{
    const char *at = k->prefix;

    k->args = args_below(k->monitor, "", 0);
    while (k->object && at < k->prefix + k->prefix_len) {
        size_t len = strcspn(at, ".");
        const json_t *type = member_type(k, at, len);

        at += len + 1;
        if (is_meta(type, "array")) { /* an index follows */
            type = schema_follow(k->schema, type, "element-type", NULL);
            at += strcspn(at, ".") + 1;
        }
        k->object = object_of(k->schema, type);
        json_decref(k->args);
        k->args = args_below(k->monitor, k->prefix, (size_t)(at - k->prefix));
    }
}

/* "optional string" */
static void describe(const struct keys *k, const char *name, const json_t *type,
                     char *about, size_t size)
{
    const json_t *member = schema_member(k->schema, k->object, k->args, name);
    const char *meta = member_str(type, "meta-type");
    const char *plain = member_str(type, "json-type");

    (void)snprintf(about, size, "%s%s",
                   json_object_get(member, "default") ? "optional " : "",
                   plain                               ? plain
                   : meta && strcmp(meta, "enum") == 0 ? "word"
                   : meta                              ? meta
                                                       : "");
}

static void offer_key(const char *name, void *opaque)
{
    const struct keys *k = opaque;
    const json_t *type = member_type(k, name, strlen(name));
    bool array = is_meta(type, "array");
    char about[64];

    if (json_object_get(k->args, name)) {
        return; /* it was given */
    }
    describe(k, name, type, about, sizeof(about));
    if (array) {
        type = schema_follow(k->schema, type, "element-type", NULL);
    }
    if (object_of(k->schema, type)) {
        offer_with(k->o, name, array ? ".0." : ".", about);
    }
    if (!is_meta(type, "object")) {
        offer_with(k->o, name, array ? ".0=" : "=", about);
    }
}

static void offer_values(struct offers *o, const json_t *type)
{
    const char *plain = member_str(type, "json-type");
    size_t i;
    json_t *item;

    if (plain && strcmp(plain, "boolean") == 0) {
        offer_words(o, "true|false");
    }
    if (is_meta(type, "enum")) {
        json_array_foreach (schema_words(type), i, item) {
            const char *word = schema_word(item);

            if (word) {
                offer(o, word, NULL);
            }
        }
    }
}

/* Of "a.b.c" the prefix is "a.b."; of "a.b.c=x" it is that, too. */
static void offer_arguments(struct keys *k, const char *typed)
{
    size_t len = strcspn(typed, "=");
    size_t dot = len;

    while (dot > 0 && typed[dot - 1] != '.') {
        dot--;
    }
    k->prefix = typed;
    k->prefix_len = dot;
    follow_dots(k);
    if (k->object && typed[len] == '=') {
        const json_t *type = member_type(k, typed + dot, len - dot);

        k->o->head += len + 1;
        offer_values(k->o, type);
    } else if (k->object) {
        k->o->head += dot;
        schema_each_member(k->schema, k->object, k->args, offer_key, k);
    }
    json_decref(k->args);
}

void ask_arguments(struct offers *o, const void *monitor)
{
    const struct ask_monitor *m = monitor;
    struct schema s = SCHEMA_INIT;

    if (learn(&s, m)) {
        const json_t *command = schema_find(&s, m->command, "command");
        struct keys k = {
            .o = o,
            .schema = &s,
            .monitor = m,
            .object = schema_follow(&s, command, "arg-type", "object"),
        };

        offer_arguments(&k, offers_rest(o));
    }
    schema_free(&s);
}
