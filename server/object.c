/* SPDX-License-Identifier: BSD-3-Clause */
#include "object.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/throttle.h"
#include "nbdelta/tls_creds.h"

struct objects {
    struct graph *graph; /* keeps throttle groups and TLS credentials */
    json_t *by_id;       /* id -> properties, "qom-type" among them */
};

/* --- Types. --- */

static const char *const types[] = {
    "iothread",
    "secret",
    "throttle-group",
    "tls-creds-anon",
    "tls-creds-psk",
    "tls-creds-x509",
    NULL,
};
static const char *const formats[] = {"raw", "base64", NULL};
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

static const struct qmp_arg secret_args[] = {
    QMP_OPT("data", STR),
    QMP_OPT("file", STR),
    QMP_OPT("format", ENUM, .words = formats),
    QMP_LAST,
};

/* Of one kind of limit: steady, in bursts, and for how many seconds. */
#define LIMIT(prefix, what)                                      \
    QMP_OPT(prefix what, INT), QMP_OPT(prefix what "-max", INT), \
        QMP_OPT(prefix what "-max-length", INT)
#define LIMITS(prefix)                                           \
    LIMIT(prefix, "bps-total"), LIMIT(prefix, "bps-read"),       \
        LIMIT(prefix, "bps-write"), LIMIT(prefix, "iops-total"), \
        LIMIT(prefix, "iops-read"), LIMIT(prefix, "iops-write"), \
        QMP_OPT(prefix "iops-size", INT)

static const struct qmp_arg limits_args[] = {LIMITS(""), QMP_LAST};

static const struct qmp_arg throttle_args[] = {
    QMP_OPT("limits", OBJECT, .members = limits_args),
    LIMITS("x-"),
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

static const struct qmp_variant variants[] = {
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
    QMP_VARIANTS("qom-type", variants),
};

/* --- Checks that the list of arguments cannot express. --- */

static const char *text_of(const json_t *props, const char *key)
{
    return json_string_value(json_object_get(props, key));
}

static int check_readable(const char *path, struct error **errp)
{
    CLEANUP_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);

    return fd < 0 ? error_set(errp, errno, "Unable to read %s: %s", path,
                              strerror(errno))
                  : 0;
}

static int check_secret(const json_t *props, struct error **errp)
{
    const char *file = text_of(props, "file");

    if (text_of(props, "data") && file) {
        return error_set(errp, EINVAL,
                         "'file' and 'data' are mutually exclusive");
    }
    if (!text_of(props, "data") && !file) {
        return error_set(errp, EINVAL,
                         "Either 'file' or 'data' must be provided");
    }
    return file ? check_readable(file, errp) : 0;
}

static int check_dir(const json_t *props, struct error **errp)
{
    const char *dir = text_of(props, "dir");

    return dir && access(dir, X_OK) < 0
               ? error_set(errp, errno, "Unable to access credentials %s: %s",
                           dir, strerror(errno))
               : 0;
}

static int check(const json_t *props, struct error **errp)
{
    const char *type = text_of(props, "qom-type");

    if (strcmp(type, "secret") == 0) {
        return check_secret(props, errp);
    }
    return strncmp(type, "tls-", 4) == 0 ? check_dir(props, errp) : 0;
}

bool id_is_well_formed(const char *id)
{
    size_t n = 0;

    while (isalnum((unsigned char)id[n]) || (id[n] && strchr("-._", id[n]))) {
        n++;
    }
    return isalpha((unsigned char)id[0]) && id[n] == '\0';
}

/* --- The set. --- */

struct objects *objects_new(struct graph *g)
{
    struct objects *s = calloc(1, sizeof(*s));

    if (s) {
        s->graph = g;
        s->by_id = json_object();
    }
    if (s && !s->by_id) {
        free(s);
        return NULL;
    }
    return s;
}

void objects_free(struct objects *s)
{
    if (s) {
        json_decref(s->by_id);
        free(s);
    }
}

/* Some kinds are known to the graph, because its nodes use them. */
static const struct kind {
    const char *type;
    int (*create)(struct graph *g, const json_t *props, struct error **errp);
    int (*delete)(struct graph *g, const char *id, struct error **errp);
} kinds[] = {
    {"throttle-group", throttle_group_create, throttle_group_delete},
    {"tls-creds-anon", tls_creds_create, tls_creds_delete},
    {"tls-creds-psk", tls_creds_create, tls_creds_delete},
    {"tls-creds-x509", tls_creds_create, tls_creds_delete},
};

static const struct kind *kind_of(const char *type)
{
    for (size_t i = 0; type && i < ARRAY_SIZE(kinds); i++) {
        if (strcmp(type, kinds[i].type) == 0) {
            return &kinds[i];
        }
    }
    return NULL;
}

int objects_add(struct objects *s, json_t *props, struct error **errp)
{
    const char *id = text_of(props, "id");

    if (!id_is_well_formed(id)) {
        return error_set(errp, EINVAL, "Parameter 'id' expects an identifier");
    }
    if (json_object_get(s->by_id, id)) {
        return error_set(errp, EEXIST,
                         "attempt to add duplicate property '%s' to object "
                         "(type 'container')",
                         id);
    }
    const struct kind *kind = kind_of(text_of(props, "qom-type"));
    int r = check(props, errp);
    if (r == 0 && kind) {
        r = kind->create(s->graph, props, errp);
    }
    if (r == 0 &&
        json_object_set_new(s->by_id, id, json_deep_copy(props)) < 0) {
        if (kind) {
            (void)kind->delete (s->graph, id, NULL);
        }
        r = error_set(errp, ENOMEM, "Out of memory");
    }
    return r;
}

int objects_del(struct objects *s, const char *id, struct error **errp)
{
    const struct kind *kind = kind_of(objects_type(s, id));
    int r = kind ? kind->delete (s->graph, id, errp) : 0;

    if (r < 0) {
        return r;
    }
    return json_object_del(s->by_id, id) < 0
               ? error_set(errp, ENOENT, "object '%.200s' not found", id)
               : 0;
}

const char *objects_type(const struct objects *s, const char *id)
{
    return text_of(json_object_get(s->by_id, id), "qom-type");
}
