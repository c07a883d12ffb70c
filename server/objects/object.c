/* SPDX-License-Identifier: BSD-3-Clause */
/* The objects of --object and object-add, by their ids: see object.h. */
#include "objects/object.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/list.h"
#include "nbdelta/secret.h"
#include "nbdelta/text.h"
#include "nbdelta/throttle.h"
#include "nbdelta/tls-creds.h"
#include "net/tls.h"
#include "objects/authz.h"
#include "objects/secret.h"

/* Credentials whose files are loaded. */
struct loaded {
    struct list in_set;
    char *id;
    struct tls_keys *keys;
};

struct objects {
    struct graph *graph;     /* keeps throttle groups and TLS credentials */
    struct authz_set *authz; /* keeps authorizations */
    struct list loaded;
    json_t *by_id; /* id -> properties, "qom-type" among them */
};

/* --- Types. --- */

static const char *const types[] = {
    "authz-list",     "authz-listfile",
    "authz-simple",   "iothread",
    "secret",         "throttle-group",
    "tls-creds-anon", "tls-creds-psk",
    "tls-creds-x509", NULL,
};
static const char *const endpoints[] = {"client", "server", NULL};

static const struct qmp_arg iothread_args[] = {
    QMP_OPT("aio-max-batch", INT),
    QMP_OPT("thread-pool-min", INT),
    QMP_OPT("thread-pool-max", INT),
    QMP_OPT("poll-max-ns", INT),
    QMP_OPT("poll-grow", INT),
    QMP_OPT("poll-shrink", INT),
    QMP_LAST,
};

/* The options of one kind of limit: steady, in bursts, and for how many
 * seconds. */
#define ROW(name, f) QMP_OPT(name, INT, .features = (f))
#define LIMIT(prefix, what, f)                       \
    ROW(prefix what, f), ROW(prefix what "-max", f), \
        ROW(prefix what "-max-length", f)
#define LIMITS(prefix, f)                                              \
    LIMIT(prefix, "bps-total", f), LIMIT(prefix, "bps-read", f),       \
        LIMIT(prefix, "bps-write", f), LIMIT(prefix, "iops-total", f), \
        LIMIT(prefix, "iops-read", f), LIMIT(prefix, "iops-write", f), \
        ROW(prefix "iops-size", f)

static const struct qmp_arg limits_args[] = {LIMITS("", NULL), QMP_LAST};

static const struct qmp_arg throttle_args[] = {
    QMP_OPT("limits", OBJECT, .members = limits_args),
    LIMITS("x-", qmp_unstable),
    QMP_LAST,
};

#define TLS_ARGS                                       \
    QMP_OPT("verify-peer", BOOL), QMP_OPT("dir", STR), \
        QMP_OPT("endpoint", ENUM, .words = endpoints), \
        QMP_OPT("priority", STR)

static const struct qmp_arg anon_args[] = {
    TLS_ARGS,
    QMP_LAST,
};

static const struct qmp_arg psk_args[] = {
    TLS_ARGS,
    QMP_OPT("username", STR),
    QMP_LAST,
};

static const struct qmp_arg x509_args[] = {
    TLS_ARGS,
    QMP_OPT("sanity-check", BOOL),
    QMP_OPT("passwordid", STR),
    QMP_LAST,
};

const struct qmp_variant objects_types[] = {
    {"authz-list", authz_list_args},
    {"authz-listfile", authz_listfile_args},
    {"authz-simple", authz_simple_args},
    {"iothread", iothread_args},
    {"secret", secret_args},
    {"throttle-group", throttle_args},
    {"tls-creds-anon", anon_args},
    {"tls-creds-psk", psk_args},
    {"tls-creds-x509", x509_args},
    {NULL, NULL},
};

const struct qmp_arg object_args[] = {
    QMP_ARG("qom-type", ENUM, .words = types),
    QMP_ARG("id", STR),
    QMP_VARIANTS("qom-type", objects_types),
};

/* --- TLS credentials. --- */

static int secret_of(const struct objects *s, const char *id, char **secret,
                     struct error **errp)
{
    const json_t *props = json_object_get(s->by_id, id);

    if (!props) {
        return error_set(errp, ENOENT, "No secret with id '%s'", id);
    }
    if (strcmp(member_str(props, "qom-type"), "secret") != 0) {
        return error_set(errp, EINVAL, "Object with id '%s' is not a secret",
                         id);
    }
    return secret_text(props, secret, errp);
}

static struct loaded *find_creds(const struct objects *s, const char *id)
{
    list_for_each (l, &s->loaded) {
        struct loaded *k = list_entry(l, struct loaded, in_set);

        if (strcmp(k->id, id) == 0) {
            return k;
        }
    }
    return NULL;
}

static void unload_creds(struct loaded *k)
{
    list_remove(&k->in_set);
    tls_keys_unref(k->keys);
    free(k->id);
    free(k);
}

static int load_creds(struct objects *s, const struct tls_creds *c,
                      struct error **errp)
{
    struct loaded *k = calloc(1, sizeof(*k));
    char *password = NULL;
    int r = 0;

    if (!k || !(k->id = strdup(c->id))) {
        free(k);
        return error_nomem(errp);
    }
    list_init(&k->in_set);
    if (c->passwordid) {
        r = secret_of(s, c->passwordid, &password, errp);
    }
    if (r == 0) {
        r = tls_keys_load(c, password, &k->keys, errp);
    }
    secret_free(password);
    if (r < 0) {
        unload_creds(k);
        return r;
    }
    list_append(&s->loaded, &k->in_set);
    return 0;
}

/* The properties go to the graph, the files are loaded here. */
static int add_creds(struct objects *s, const json_t *props,
                     struct error **errp)
{
    const char *id = member_str(props, "id");
    const char *endpoint = member_str(props, "endpoint");
    bool server = endpoint && strcmp(endpoint, "server") == 0;
    const struct tls_creds *c;
    int r = tls_creds_create(s->graph, props, errp);

    if (r < 0 || (r = tls_creds_get(s->graph, id, server, &c, errp)) < 0) {
        return r;
    }
    r = load_creds(s, c, errp);
    tls_creds_put(c);
    if (r < 0) {
        (void)tls_creds_delete(s->graph, id, NULL);
    }
    return r;
}

static int remove_creds(struct objects *s, const char *id, struct error **errp)
{
    unload_creds(find_creds(s, id));
    return tls_creds_delete(s->graph, id, errp);
}

int objects_tls_keys(const struct objects *s, const char *id, bool server,
                     struct tls_keys **keys, struct error **errp)
{
    const struct loaded *k = find_creds(s, id);
    const struct tls_creds *c;

    if (!k) {
        return objects_type(s, id)
                   ? error_set(errp, EINVAL,
                               "Object with id '%s' is not TLS credentials", id)
                   : error_set(errp, ENOENT, "No TLS credentials with id '%s'",
                               id);
    }
    int r = tls_creds_get(s->graph, id, server, &c, errp);
    if (r == 0) {
        tls_creds_put(c);
        *keys = tls_keys_ref(k->keys);
    }
    return r;
}

/* --- The others. --- */

static int add_group(struct objects *s, const json_t *props,
                     struct error **errp)
{
    return throttle_group_create(s->graph, props, errp);
}

static int remove_group(struct objects *s, const char *id, struct error **errp)
{
    return throttle_group_delete(s->graph, id, errp);
}

/* The graph has a copy, for images that name the secret. */
static int add_secret(struct objects *s, const json_t *props,
                      struct error **errp)
{
    char *text = NULL;
    size_t len = 0;
    int r = secret_check(props, errp);

    if (r == 0) {
        r = secret_bytes(props, &text, &len, errp);
    }
    if (r == 0) {
        r = secret_create(s->graph, member_str(props, "id"), text, len, errp);
    }
    secret_free(text);
    return r;
}

static int remove_secret(struct objects *s, const char *id, struct error **errp)
{
    return secret_delete(s->graph, id, errp);
}

static int add_authz(struct objects *s, const json_t *props,
                     struct error **errp)
{
    return authz_add(s->authz, props, errp);
}

static int remove_authz(struct objects *s, const char *id, struct error **errp)
{
    (void)errp;
    authz_remove(s->authz, id);
    return 0;
}

int objects_check_authz(const struct objects *s, const char *id,
                        struct error **errp)
{
    return authz_exists(s->authz, id)
               ? 0
               : error_set(errp, ENOENT, "Cannot find QAuthZ object ID %.200s",
                           id);
}

bool objects_allow(const struct objects *s, const char *authz,
                   const char *identity)
{
    return authz_allows(s->authz, authz, identity);
}

/* --- The set. --- */

/* Kinds of objects that are kept elsewhere, too. */
static const struct kind {
    const char *prefix; /* of the names of types */
    int (*add)(struct objects *s, const json_t *props, struct error **errp);
    int (*remove)(struct objects *s, const char *id, struct error **errp);
} kinds[] = {
    {"authz-", add_authz, remove_authz},
    {"secret", add_secret, remove_secret},
    {"throttle-group", add_group, remove_group},
    {"tls-creds-", add_creds, remove_creds},
};

static const struct kind *kind_of(const char *type)
{
    for (size_t i = 0; type && i < ARRAY_SIZE(kinds); i++) {
        if (strncmp(type, kinds[i].prefix, strlen(kinds[i].prefix)) == 0) {
            return &kinds[i];
        }
    }
    return NULL;
}

struct objects *objects_new(struct graph *g)
{
    struct objects *s = g ? calloc(1, sizeof(*s)) : NULL;

    if (!s) {
        return NULL;
    }
    s->graph = g;
    list_init(&s->loaded);
    s->authz = authz_set_new();
    s->by_id = json_object();
    if (!s->authz || !s->by_id) {
        objects_free(s);
        return NULL;
    }
    return s;
}

void objects_free(struct objects *s)
{
    if (s) {
        list_for_each_safe (l, &s->loaded) {
            unload_creds(list_entry(l, struct loaded, in_set));
        }
        authz_set_free(s->authz);
        json_decref(s->by_id);
        free(s);
    }
}

int objects_add(struct objects *s, json_t *props, struct error **errp)
{
    const char *id = member_str(props, "id");
    const char *type = member_str(props, "qom-type");
    const struct kind *kind = kind_of(type);
    int r = 0;

    if (!text_is_id(id)) {
        return error_set(errp, EINVAL, "Parameter 'id' expects an identifier");
    }
    if (json_object_get(s->by_id, id)) {
        return error_set(errp, EEXIST,
                         "attempt to add duplicate property '%s' to object "
                         "(type 'container')",
                         id);
    }
    if (kind) {
        r = kind->add(s, props, errp);
    }
    if (r == 0 &&
        json_object_set_new(s->by_id, id, json_deep_copy(props)) < 0) {
        if (kind) {
            (void)kind->remove(s, id, NULL);
        }
        r = error_nomem(errp);
    }
    return r;
}

int objects_del(struct objects *s, const char *id, struct error **errp)
{
    const struct kind *kind = kind_of(objects_type(s, id));
    int r = kind ? kind->remove(s, id, errp) : 0;

    if (r < 0) {
        return r;
    }
    return json_object_del(s->by_id, id) < 0
               ? error_set(errp, ENOENT, "object '%.200s' not found", id)
               : 0;
}

json_t *objects_all(const struct objects *s)
{
    return s->by_id;
}

const struct qmp_variant *objects_find_type(const char *type)
{
    const struct qmp_variant *v = objects_types;

    while (v->name && strcmp(v->name, type) != 0) {
        v++;
    }
    return v->name ? v : NULL;
}

const struct qmp_arg *objects_find_property(const char *type, const char *name)
{
    const struct qmp_variant *v = objects_find_type(type);

    for (const struct qmp_arg *a = v ? v->members : NULL; a && !qmp_is_last(a);
         a++) {
        if (strcmp(a->name, name) == 0) {
            return a;
        }
    }
    return NULL;
}

const char *objects_type(const struct objects *s, const char *id)
{
    return member_str(json_object_get(s->by_id, id), "qom-type");
}
