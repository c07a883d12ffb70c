/* SPDX-License-Identifier: BSD-3-Clause */
/* Authorization objects: their properties, their files, their rules (authz.h).
 */
#include "objects/authz.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/list.h"
#include "nbdelta/thread.h"
#include "net/stamp.h"

#define FILE_SIZE_MAX MiB

struct authz {
    struct list in_set;
    json_t *props;      /* of the object */
    json_t *rules;      /* "policy" and "rules"; NULL: the file is no list */
    struct stamp stamp; /* of the file, when it was read */
};

struct authz_set {
    mutex_t lock;
    struct list list; /* guarded by lock */
};

/* --- Properties. --- */

static const char *const policies[] = {"deny", "allow", NULL};
static const char *const formats[] = {"exact", "glob", NULL};

static const struct qmp_arg rule_args[] = {
    QMP_ARG("match", STR),
    QMP_ARG("policy", ENUM, .words = policies),
    QMP_OPT("format", ENUM, .words = formats),
    QMP_LAST,
};

const struct qmp_arg authz_simple_args[] = {
    QMP_ARG("identity", STR),
    QMP_LAST,
};

const struct qmp_arg authz_list_args[] = {
    QMP_OPT("policy", ENUM, .words = policies),
    QMP_OPT("rules", OBJECTS, .members = rule_args),
    QMP_LAST,
};

const struct qmp_arg authz_listfile_args[] = {
    QMP_ARG("filename", STR),
    QMP_OPT("refresh", BOOL),
    QMP_LAST,
};

static const char *text_or_empty(const json_t *o, const char *key)
{
    const char *text = member_str(o, key);

    return text ? text : "";
}

static bool authz_is(const struct authz *a, const char *type)
{
    return strcmp(text_or_empty(a->props, "qom-type"), type) == 0;
}

/* --- Files. --- */

static int read_rules(const char *path, json_t **rules, struct error **errp)
{
    CLEANUP_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    CLEANUP_FREE char *text = malloc(FILE_SIZE_MAX);
    json_error_t why;
    size_t n = 0;

    if (!text) {
        return error_nomem(errp);
    }
    for (ssize_t got = 1; got > 0 && n < FILE_SIZE_MAX; n += (size_t)got) {
        got = fd < 0 ? -1 : read(fd, text + n, FILE_SIZE_MAX - n);
        if (got < 0) {
            return error_set(errp, errno, "Unable to read '%s': %s", path,
                             strerror(errno));
        }
    }
    CLEANUP_JSON json_t *o = json_loadb(text, n, 0, &why);
    if (!json_is_object(o)) {
        return error_set(errp, EINVAL, "File '%s' must contain a JSON object",
                         path);
    }
    int r = qmp_check_args(o, authz_list_args, "", errp);
    if (r < 0) {
        error_prefix(errp, "File '%s': ", path);
        return r;
    }
    *rules = json_incref(o);
    return 0;
}

static int load_rules(struct authz *a, struct error **errp)
{
    const char *path = text_or_empty(a->props, "filename");

    json_decref(a->rules);
    a->rules = NULL;
    a->stamp = stamp_of(path); /* before the read: no change goes unseen */
    return read_rules(path, &a->rules, errp);
}

static void refresh_rules(struct authz *a)
{
    struct stamp now = stamp_of(text_or_empty(a->props, "filename"));

    if (!stamp_same(&now, &a->stamp)) {
        (void)load_rules(a, NULL);
    }
}

/* --- The set. --- */

struct authz_set *authz_set_new(void)
{
    struct authz_set *s = calloc(1, sizeof(*s));

    if (s) {
        mutex_init(&s->lock, LOCK_AUTHZ, NULL);
        list_init(&s->list);
    }
    return s;
}

static void authz_free(struct authz *a)
{
    list_remove(&a->in_set);
    json_decref(a->props);
    json_decref(a->rules);
    free(a);
}

void authz_set_free(struct authz_set *s)
{
    if (s) {
        list_for_each_safe (l, &s->list) {
            authz_free(list_entry(l, struct authz, in_set));
        }
        mutex_destroy(&s->lock);
        free(s);
    }
}

static struct authz *find_authz(struct authz_set *s, const char *id)
    REQUIRES(s->lock)
{
    list_for_each (l, &s->list) {
        struct authz *a = list_entry(l, struct authz, in_set);

        if (strcmp(text_or_empty(a->props, "id"), id) == 0) {
            return a;
        }
    }
    return NULL;
}

int authz_add(struct authz_set *s, const json_t *props, struct error **errp)
{
    struct authz *a = calloc(1, sizeof(*a));
    int r = 0;

    if (!a || !(a->props = json_deep_copy(props))) {
        free(a);
        return error_nomem(errp);
    }
    list_init(&a->in_set);
    if (authz_is(a, "authz-listfile")) {
        r = load_rules(a, errp);
    } else {
        a->rules = json_incref(a->props);
    }
    if (r < 0) {
        authz_free(a);
        return r;
    }
    mutex_lock(&s->lock);
    list_append(&s->list, &a->in_set);
    mutex_unlock(&s->lock);
    return 0;
}

void authz_remove(struct authz_set *s, const char *id)
{
    mutex_lock(&s->lock);
    struct authz *a = find_authz(s, id);
    if (a) {
        authz_free(a);
    }
    mutex_unlock(&s->lock);
}

bool authz_exists(struct authz_set *s, const char *id)
{
    mutex_lock(&s->lock);
    bool found = find_authz(s, id);
    mutex_unlock(&s->lock);
    return found;
}

/* --- Judging. --- */

static const char *after_character(const char *s)
{
    do {
        s++;
    } while (((unsigned char)*s & 0xc0) == 0x80); /* UTF-8 goes on */
    return s;
}

/* Does @text match @pattern, in which '*' is any text and '?' one character?
 * A '*' takes as little as it can.  What follows the last '*' that was seen is
 * tried again further on. */
static bool glob_matches(const char *pattern, const char *text)
{
    const char *star = NULL;
    const char *from = NULL; /* what the star has taken ends here */

    while (*text) {
        if (*pattern == '*') {
            star = ++pattern;
            from = text;
        } else if (*pattern == '?') {
            pattern++;
            text = after_character(text);
        } else if (*pattern == *text) {
            pattern++;
            text++;
        } else if (star) {
            pattern = star;
            text = ++from;
        } else {
            return false;
        }
    }
    while (*pattern == '*') {
        pattern++;
    }
    return *pattern == '\0';
}

/* The first rule that matches decides; without one, the policy of the list. */
static bool rules_allow(const json_t *list, const char *identity)
{
    const json_t *rules = json_object_get(list, "rules");
    size_t i;
    json_t *rule;

    json_array_foreach (rules, i, rule) {
        const char *match = text_or_empty(rule, "match");
        bool glob = strcmp(text_or_empty(rule, "format"), "glob") == 0;

        if (glob ? glob_matches(match, identity)
                 : strcmp(match, identity) == 0) {
            return strcmp(text_or_empty(rule, "policy"), "allow") == 0;
        }
    }
    return strcmp(text_or_empty(list, "policy"), "allow") == 0;
}

static bool authz_admits(struct authz *a, const char *identity)
{
    if (authz_is(a, "authz-simple")) {
        return strcmp(text_or_empty(a->props, "identity"), identity) == 0;
    }
    if (authz_is(a, "authz-listfile") &&
        !json_is_false(json_object_get(a->props, "refresh"))) {
        refresh_rules(a);
    }
    return a->rules && rules_allow(a->rules, identity);
}

bool authz_allows(struct authz_set *s, const char *id, const char *identity)
{
    mutex_lock(&s->lock);
    struct authz *a = find_authz(s, id);
    bool ok = a && identity && authz_admits(a, identity);
    mutex_unlock(&s->lock);
    return ok;
}
