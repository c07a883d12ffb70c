/* SPDX-License-Identifier: BSD-3-Clause */
/* DIR/resume.json: see resume.h. */
#include "store/resume.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "store/store-priv.h"

#define FILE_NAME "resume.json"
#define FILE_MAX  (1 << 20)

int resume_put(struct store *s, const char *point, const json_t *what,
               struct error **errp)
{
    CLEANUP_JSON json_t *j = json_pack("{s:s, s:O?}", "point", point, "what",
                                       what);
    CLEANUP_FREE char *text = j ? json_dumps(j, JSON_INDENT(1)) : NULL;

    if (!what) {
        s->resume[0] = '\0';
    }
    return text ? store_put_file(s, FILE_NAME, text, strlen(text), errp)
                : error_nomem(errp);
}

void resume_get(struct store *s, char point[POINT_NAME_MAX], json_t **what)
{
    CLEANUP_FREE char *text = NULL;
    size_t length = 0;

    *what = NULL;
    point[0] = '\0';
    s->resume[0] = '\0';
    if (store_get_file(s, FILE_NAME, FILE_MAX, &text, &length, NULL) < 0) {
        return;
    }
    CLEANUP_JSON json_t *j = json_loadb(text, length, JSON_REJECT_DUPLICATES,
                                        NULL);
    const char *name = json_string_value(json_object_get(j, "point"));
    json_t *is = json_object_get(j, "what");
    const struct store_point *last = store_latest(s);
    const struct store_point *named = name ? store_named(s, name) : NULL;

    if (name && (json_is_object(is) || json_is_null(is)) &&
        point_name_valid(name) && (!named || named == store_pending(s)) &&
        (!last || strcmp(name, last->name) > 0)) {
        memcpy(point, name, POINT_NAME_MAX);
        if (json_is_object(is)) {
            memcpy(s->resume, named ? "" : name, named ? 1 : POINT_NAME_MAX);
            *what = json_incref(is);
        }
    }
}

int resume_drop(struct store *s, struct error **errp)
{
    int r = store_check_writable(s, errp);

    s->resume[0] = '\0';
    r = r < 0 ? r : dir_remove(s->dir, FILE_NAME, errp);
    return r < 0 ? r : dir_flush(s->dir, errp);
}
