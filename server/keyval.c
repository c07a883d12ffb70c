/* SPDX-License-Identifier: BSD-3-Clause */
/* From words of the command line to checked arguments: see keyval.h. */
#include "keyval.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "keyval-node.h"
#include "log/log.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/options.h"

static int convert_members(json_t *object, const struct qmp_arg *spec,
                           struct error **errp);

static int to_integer(const char *text, const struct qmp_arg *a, json_t **v,
                      struct error **errp)
{
    char *end;

    errno = 0;
    long long n = strtoll(text, &end, 0);
    if (errno != 0 || *end || end == text || isspace((unsigned char)*text)) {
        return error_set(errp, EINVAL, "Parameter '%s' expects %s", a->name,
                         a->type == QMP_UINT32 ? "uint32_t" : "integer");
    }
    *v = json_integer(n);
    return 0;
}

static int convert_array(json_t *array, const struct qmp_arg *spec,
                         struct error **errp)
{
    size_t i;
    json_t *item;
    int r = 0;

    json_array_foreach (array, i, item) {
        r = r == 0 ? convert_members(item, spec, errp) : r;
    }
    return r;
}

/* *v: what @old becomes; it stays as it is where that is NULL. */
static int convert(json_t *old, const struct qmp_arg *a, json_t **v,
                   struct error **errp)
{
    const char *text = json_string_value(old);

    *v = NULL;
    if (json_is_array(old)) {
        return convert_array(old, a->members, errp);
    }
    if (!text) {
        return a->type == QMP_NODE_REF ? keyval_convert_node(old, errp)
                                       : convert_members(old, a->members, errp);
    }
    switch (a->type) {
    case QMP_BOOL:
        return keyval_to_bool(text, a->name, v, errp);
    case QMP_INT:
    case QMP_UINT32:
        return to_integer(text, a, v, errp);
    case QMP_SIZE:
        return keyval_to_size(text, a->name, v, errp);
    default:
        return 0;
    }
}

static int convert_members(json_t *object, const struct qmp_arg *spec,
                           struct error **errp)
{
    const struct qmp_arg *a = spec;

    if (!json_is_object(object) || !spec) {
        return 0;
    }
    for (; !qmp_is_last(a); a++) {
        json_t *old = json_object_get(object, a->name);
        json_t *v = NULL;
        int r = old ? convert(old, a, &v, errp) : 0;

        if (r < 0) {
            return r;
        }
        if (v && json_object_set_new(object, a->name, v) < 0) {
            return error_nomem(errp);
        }
    }
    if (a->type == QMP_UNION) {
        const char *tag = json_string_value(json_object_get(object, a->name));

        for (const struct qmp_variant *u = a->variants; tag && u->name; u++) {
            if (strcmp(u->name, tag) == 0) {
                return convert_members(object, u->members, errp);
            }
        }
    }
    return a->type == QMP_NODE ? keyval_convert_node(object, errp) : 0;
}

/* --- The short form. --- */

/* Does @spec have the boolean @name, in any of its variants? */
static bool has_bool(const struct qmp_arg *spec, const char *name, size_t len)
{
    const struct qmp_arg *a = spec;

    for (; a && !qmp_is_last(a); a++) {
        if (a->type == QMP_BOOL && strlen(a->name) == len &&
            strncmp(a->name, name, len) == 0) {
            return true;
        }
    }
    if (a && a->type == QMP_UNION) {
        for (const struct qmp_variant *v = a->variants; v->name; v++) {
            if (has_bool(v->members, name, len)) {
                return true;
            }
        }
    }
    return false;
}

/* Where the word at @p ends: at a comma that is not doubled, or the end. */
static size_t word_length(const char *p)
{
    const char *start = p;

    while (*p && (*p != ',' || p[1] == ',')) {
        p += *p == ',' ? 2 : 1;
    }
    return (size_t)(p - start);
}

/* "" when it has a value, or is no boolean. */
static const char *value_of(const struct qmp_arg *spec, const char **word,
                            size_t *len)
{
    if (memchr(*word, '=', *len)) {
        return "";
    }
    if (has_bool(spec, *word, *len)) {
        return "=on";
    }
    if (*len > 2 && strncmp(*word, "no", 2) == 0 &&
        has_bool(spec, *word + 2, *len - 2)) {
        *word += 2;
        *len -= 2;
        return "=off";
    }
    return "";
}

char *keyval_spell_out(const char *text, const char *implied,
                       const struct qmp_arg *spec)
{
    char *full = NULL;
    size_t size = 0;
    FILE *f = open_memstream(&full, &size);
    const char *p = text;

    while (f) {
        const char *word = p;
        size_t all = word_length(p);
        size_t len = all;
        bool first = p == text && implied;
        const char *value = first ? "" : value_of(spec, &word, &len);

        if (*value) {
            log_line(TELL_WARNING,
                     "the short form '%.*s' is deprecated: write %.*s%s",
                     (int)all, p, (int)len, word, value);
        }
        (void)fprintf(f, "%.*s%s", (int)len, word, value);
        p += all;
        if (*p == '\0') {
            break;
        }
        (void)fputc(*p++, f);
    }
    if (f && fclose(f) != 0) {
        free(full);
        full = NULL;
    }
    return full;
}

int keyval_parse(const char *text, const char *implied,
                 const struct qmp_arg *spec, json_t **args, struct error **errp)
{
    CLEANUP_JSON json_t *object = NULL;
    bool json = text[0] == '{' || strncmp(text, "json:", 5) == 0;
    int r = options_parse(text, implied, &object, errp);

    if (r == 0 && !json) {
        r = convert_members(object, spec, errp);
    }
    if (r == 0) {
        r = qmp_check_args(object, spec, "", errp);
    }
    if (r == 0) {
        *args = json_incref(object);
    }
    return r;
}
