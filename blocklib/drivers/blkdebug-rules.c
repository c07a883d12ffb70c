/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Rules of a blkdebug node, from its options or from a file:
 *
 *     [inject-error]          "inject-error": [{"event": "read_aio",
 *     event = "read_aio"                        "errno": 28}]
 *     errno = "28"
 *
 * A section of the file becomes the same object as an element of the array.
 */
#include "drivers/blkdebug-rules.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/opts.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"

#define SECTOR    512
#define ERRNO_MAX 4095
#define LINE_MAX_ 1200 /* of the file; values have up to 1023 bytes */

static const char *const event_names[EVENT_COUNT + 1] = {
#define EVENT_NAME(constant, word) [EVENT_##constant] = (word),
    NODE_EVENTS(EVENT_NAME)
#undef EVENT_NAME
};

static const char *const section_names[] = {
    [BLKDEBUG_INJECT] = "inject-error",
    [BLKDEBUG_SET_STATE] = "set-state",
};

int blkdebug_event_find(const char *name)
{
    for (int i = 0; i < EVENT_COUNT; i++) {
        if (strcmp(event_names[i], name) == 0) {
            return i;
        }
    }
    return -ENOENT;
}

void blkdebug_rule_free(struct blkdebug_rule *r)
{
    if (r) {
        free(r->tag);
        free(r);
    }
}

void blkdebug_rules_free(struct list *rules)
{
    list_for_each_safe (at, rules) {
        list_remove(at);
        blkdebug_rule_free(list_entry(at, struct blkdebug_rule, link));
    }
}

/* --- One rule --- */

static int take_int(struct opts *o, const char *key, int max, int *val,
                    struct error **errp)
{
    uint64_t n = (uint64_t)*val;
    int r = opts_uint(o, key, (uint64_t)max, &n, errp);

    *val = (int)n;
    return r;
}

static int take_event(struct opts *o, struct blkdebug_rule *rule,
                      struct error **errp)
{
    CLEANUP_JSON json_t *value = opts_take(o, "event");
    const char *name = json_string_value(value);

    if (!value) {
        return error_set(errp, EINVAL, "Missing event name for rule");
    }
    /* There are too many words for a list of them, as opts_enum() has it. */
    int r = name ? blkdebug_event_find(name) : -EINVAL;
    if (r < 0) {
        return error_set(errp, EINVAL,
                         "Parameter 'event' does not accept value '%s'",
                         name ? name : "");
    }
    rule->event = (enum node_event)r;
    return take_int(o, "state", INT_MAX, &rule->state, errp);
}

static const char *const iotype_words[] = {
    [BLKDEBUG_READ] = "read",
    [BLKDEBUG_WRITE] = "write",
    [BLKDEBUG_WRITE_ZEROES] = "write-zeroes",
    [BLKDEBUG_DISCARD] = "discard",
    [BLKDEBUG_FLUSH] = "flush",
    [BLKDEBUG_BLOCK_STATUS] = "block-status",
    NULL,
};

const struct option blkdebug_inject_options[] = {
    OPTION("event", ENUM, .required = true, .words = event_names),
    OPTION("errno", UINT),
    OPTION("immediately", BOOL),
    OPTION("iotype", ENUM, .words = iotype_words),
    OPTION("once", BOOL),
    OPTION("sector", UINT),
    OPTION("state", UINT),
    OPTIONS_END,
};

const struct option blkdebug_state_options[] = {
    OPTION("event", ENUM, .required = true, .words = event_names),
    OPTION("new_state", UINT, .required = true),
    OPTION("state", UINT),
    OPTIONS_END,
};

static int take_iotype(struct opts *o, unsigned *mask, struct error **errp)
{
    unsigned type = BLKDEBUG_READ;
    bool given = opts_has(o, "iotype");
    int r = opts_enum(o, "iotype", iotype_words, &type, errp);

    *mask = given ? 1U << type : (1U << BLKDEBUG_BLOCK_STATUS) - 1;
    return r;
}

static int take_inject(struct opts *o, struct blkdebug_rule *rule,
                       struct error **errp)
{
    uint64_t sector = UINT64_MAX;
    bool immediately = false; /* requests fail at the same moment anyway */
    int r;

    rule->error = EIO;
    if ((r = take_int(o, "errno", ERRNO_MAX, &rule->error, errp)) < 0 ||
        (r = opts_bool(o, "once", &rule->once, errp)) < 0 ||
        (r = opts_bool(o, "immediately", &immediately, errp)) < 0 ||
        (r = opts_uint(o, "sector", INT64_MAX / SECTOR, &sector, errp)) < 0 ||
        (r = take_iotype(o, &rule->iotypes, errp)) < 0) {
        return r;
    }
    rule->offset = sector == UINT64_MAX ? UINT64_MAX : sector * SECTOR;
    return 0;
}

static int read_rule(struct blkdebug_rule *rule, const json_t *object,
                     struct error **errp)
{
    char what[40];
    struct opts *o = opts_new(object);

    if (!o) {
        return error_nomem(errp);
    }
    opts_describe(o, NULL,
                  rule->action == BLKDEBUG_INJECT ? blkdebug_inject_options
                                                  : blkdebug_state_options);
    int r = take_event(o, rule, errp);
    if (r == 0) {
        r = rule->action == BLKDEBUG_INJECT
                ? take_inject(o, rule, errp)
                : take_int(o, "new_state", INT_MAX, &rule->new_state, errp);
    }
    if (r == 0) {
        (void)snprintf(what, sizeof(what), "a rule of '%s'",
                       section_names[rule->action]);
        r = opts_end(o, what, errp);
    }
    opts_free(o);
    return r;
}

static int add_rule(struct list *rules, enum blkdebug_action action,
                    const json_t *object, struct error **errp)
{
    if (!json_is_object(object)) {
        return error_set(errp, EINVAL,
                         "option '%s' must be an array of objects",
                         section_names[action]);
    }
    struct blkdebug_rule *rule = calloc(1, sizeof(*rule));
    if (!rule) {
        return error_nomem(errp);
    }
    rule->action = action;
    int r = read_rule(rule, object, errp);
    if (r < 0) {
        blkdebug_rule_free(rule);
        return r;
    }
    list_insert_before(rules->next, &rule->link);
    return 0;
}

/* --- The file --- */

struct parser {
    struct list *rules;
    const char *name;
    unsigned line;
    enum blkdebug_action action; /* of the section */
    json_t *section;             /* its keys; NULL before the first */
};

static int end_section(struct parser *p, struct error **errp)
{
    int r = p->section ? add_rule(p->rules, p->action, p->section, errp) : 0;

    json_decref(p->section);
    p->section = NULL;
    return r;
}

static int parse_line(struct parser *p, const char *line, struct error **errp)
{
    char key[64];
    char value[1024] = "";
    int end = 0;

    line += strspn(line, " \t");
    if (line[0] == '#' || line[strspn(line, " \t\r\n")] == '\0') {
        return 0;
    }
    if (sscanf(line, "[%63[^] ]]%n", key, &end) == 1 && end > 0) {
        int r = end_section(p, errp);
        if (r < 0) {
            return r;
        }
        for (p->action = BLKDEBUG_INJECT;
             strcmp(section_names[p->action], key) != 0; p->action++) {
            if (p->action == BLKDEBUG_SET_STATE) {
                return error_set(errp, EINVAL, "There is no option group '%s'",
                                 key);
            }
        }
        p->section = json_object();
        return p->section ? 0 : error_nomem(errp);
    }
    if ((sscanf(line, "%63s = \"%1023[^\"]\"%n", key, value, &end) < 2 ||
         end == 0) &&
        (sscanf(line, "%63s = \"\"%n", key, &end) < 1 || end == 0)) {
        return error_set(errp, EINVAL, "parse error");
    }
    if (!p->section) {
        return error_set(errp, EINVAL, "no group defined");
    }
    return json_object_set_new(p->section, key, json_string(value)) < 0
               ? error_set(errp, EINVAL, "parse error") /* not UTF-8 */
               : 0;
}

static int parse_file(struct parser *p, FILE *f, struct error **errp)
{
    char line[LINE_MAX_];
    int r = 0;

    while (r == 0 && fgets(line, sizeof(line), f)) {
        p->line++;
        r = strchr(line, '\n') || feof(f)
                ? parse_line(p, line, errp)
                : error_set(errp, EINVAL, "the line is too long");
    }
    if (r == 0 && ferror(f)) {
        r = error_set(errp, EIO, "%s", strerror(EIO));
    }
    if (r == 0) {
        r = end_section(p, errp);
    }
    if (r < 0) {
        json_decref(p->section);
        error_prefix(errp, "%s:%u: ", p->name, p->line);
    }
    return r;
}

static int load_file(struct list *rules, const char *name, struct error **errp)
{
    struct parser p = {.rules = rules, .name = name};
    FILE *f = fopen(name, "re");

    if (!f) {
        int e = errno;
        return error_set(errp, e, "Could not read blkdebug config file: %s",
                         strerror(e));
    }
    int r = parse_file(&p, f, errp);
    (void)fclose(f);
    return r;
}

static int load_array(struct list *rules, enum blkdebug_action action,
                      struct opts *o, struct error **errp)
{
    CLEANUP_JSON json_t *array = opts_take(o, section_names[action]);
    size_t i;
    json_t *object;

    if (array && !json_is_array(array)) {
        return error_set(errp, EINVAL, "option '%s' must be an array",
                         section_names[action]);
    }
    json_array_foreach (array, i, object) {
        int r = add_rule(rules, action, object, errp);
        if (r < 0) {
            return r;
        }
    }
    return 0;
}

int blkdebug_rules_load(struct list *rules, const char *config, struct opts *o,
                        struct error **errp)
{
    int r = config ? load_file(rules, config, errp) : 0;

    if (r == 0) {
        r = load_array(rules, BLKDEBUG_INJECT, o, errp);
    }
    if (r == 0) {
        r = load_array(rules, BLKDEBUG_SET_STATE, o, errp);
    }
    return r;
}
