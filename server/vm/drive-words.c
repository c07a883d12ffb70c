/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The words of --drive: see drive-words.h.
 *
 *     file=NAME,format=raw,file.read-zeroes=on,iops_wr=16
 *     `-------'            `-----------------' `--------'
 *      by itself            an object "file"    throttling.iops-write
 *
 * Elsewhere a key cannot have a value and members.  So file=NAME is taken out
 * of the text before the rest is parsed.
 */
#include "vm/drive-words.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/options.h"

/* --- file=NAME --- */

/* Where the word at @p ends: at a comma that is not doubled, or the end. */
static size_t word_length(const char *p)
{
    const char *start = p;

    while (*p && (*p != ',' || p[1] == ',')) {
        p += *p == ',' ? 2 : 1;
    }
    return (size_t)(p - start);
}

/* The value in @len bytes of a word, without doubled commas. */
static char *unescape(const char *value, size_t len)
{
    char *plain = malloc(len + 1);
    size_t n = 0;

    for (size_t i = 0; plain && i < len; i++) {
        plain[n++] = value[i];
        i += value[i] == ',' && i + 1 < len && value[i + 1] == ',';
    }
    if (plain) {
        plain[n] = '\0';
    }
    return plain;
}

/* *rest: the words of @text except file=NAME; the last of several counts. */
static int take_file(const char *text, char **file, char **rest,
                     struct error **errp)
{
    const char *p = text;
    size_t used = 0;

    *rest = malloc(strlen(text) + 1);
    while (*rest && *p) {
        size_t len = word_length(p);
        bool bare = p == text && !memchr(p, '=', len);
        size_t key = bare ? 0 : strlen("file=");

        if (bare || strncmp(p, "file=", key) == 0) {
            free(*file);
            *file = unescape(p + key, len - key);
            if (!*file) {
                return error_nomem(errp);
            }
        } else {
            used += (size_t)sprintf(*rest + used, "%s%.*s", used > 0 ? "," : "",
                                    (int)len, p);
        }
        p += len + (p[len] == ',');
    }
    if (!*rest) {
        return error_nomem(errp);
    }
    (*rest)[used] = '\0';
    return 0;
}

static json_t *take_child(json_t *image)
{
    json_t *child = json_incref(json_object_get(image, "file"));

    (void)json_object_del(image, "file");
    return child;
}

int drive_words_merge(json_t *image, json_t *given, struct error **errp)
{
    CLEANUP_JSON json_t *child = take_child(image);
    const json_t *driver = json_object_get(given, "driver");
    bool between = driver &&
                   !json_equal(driver, json_object_get(child, "driver"));

    if (!json_is_object(child)) {
        return error_set(errp, EINVAL,
                         "options 'file.*' go with the name of a file");
    }
    int r = between ? json_object_set(given, "file", child)
                    : json_object_update_missing(given, child);
    return r < 0 || json_object_set(image, "file", given) < 0
               ? error_nomem(errp)
               : 0;
}

/* --- Old names --- */

static int rename_limit(json_t *o, const char *from, const char *to,
                        struct error **errp)
{
    json_t *value = json_object_get(o, from);
    json_t *limits = json_object_get(o, "throttling");

    if (!value) {
        return 0;
    }
    if (!limits) {
        limits = json_object();
        if (json_object_set_new(o, "throttling", limits) < 0) {
            return error_nomem(errp);
        }
    }
    if (json_object_get(limits, to)) {
        return error_set(errp, EINVAL,
                         "'throttling.%s' and its alias '%s' can't be used at "
                         "the same time",
                         to, from);
    }
    if (json_object_set(limits, to, value) < 0) {
        return error_nomem(errp);
    }
    (void)json_object_del(o, from);
    return 0;
}

static int rename_limits(json_t *o, struct error **errp)
{
    static const char *const names[][2] = {
        {"iops", "iops-total"},         {"iops_rd", "iops-read"},
        {"iops_wr", "iops-write"},      {"bps", "bps-total"},
        {"bps_rd", "bps-read"},         {"bps_wr", "bps-write"},
        {"iops_max", "iops-total-max"}, {"iops_rd_max", "iops-read-max"},
        {"bps_max", "bps-total-max"},   {"iops_wr_max", "iops-write-max"},
        {"bps_rd_max", "bps-read-max"}, {"bps_wr_max", "bps-write-max"},
        {"iops_size", "iops-size"},     {"group", "group"},
    };
    int r = 0;

    for (size_t i = 0; r == 0 && i < ARRAY_SIZE(names); i++) {
        r = rename_limit(o, names[i][0], names[i][1], errp);
    }
    return r;
}

int drive_words_parse(const char *text, char **file, json_t **options,
                      struct error **errp)
{
    CLEANUP_FREE char *rest = NULL;
    CLEANUP_JSON json_t *o = NULL;
    bool json = text[0] == '{' || strncmp(text, "json:", 5) == 0;

    *file = NULL;
    int r = json ? 0 : take_file(text, file, &rest, errp);
    if (r == 0 && rest && *rest == '\0') {
        o = json_object();
        r = o ? 0 : error_nomem(errp);
    } else if (r == 0) {
        r = options_parse(json ? text : rest, NULL, &o, errp);
    }
    if (r == 0) {
        r = rename_limits(o, errp);
    }
    if (r < 0) {
        free(*file);
        *file = NULL;
        return r;
    }
    *options = json_incref(o);
    return 0;
}
