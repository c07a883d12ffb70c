/* SPDX-License-Identifier: BSD-3-Clause */
/* blockdev-create: images, and the files for them. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "commands/table.h"
#include "daemon.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "nbdelta/job.h"

static const char *const preallocation_words[] = {"off", "metadata", "falloc",
                                                  "full", NULL};
static const char *const version_words[] = {"v2", "v3", NULL};
static const char *const compression_words[] = {"zlib", "zstd", NULL};

static const struct qmp_arg file_args[] = {
    QMP_ARG("filename", STR),
    QMP_ARG("size", SIZE),
    QMP_OPT("preallocation", ENUM, .words = preallocation_words),
    QMP_LAST,
};

static const char *const encrypt_words[] = {"luks", NULL};

static const struct qmp_arg luks_args[] = {
    QMP_OPT("key-secret", STR),     QMP_OPT("cipher-alg", STR),
    QMP_OPT("cipher-mode", STR),    QMP_OPT("ivgen-alg", STR),
    QMP_OPT("ivgen-hash-alg", STR), QMP_OPT("hash-alg", STR),
    QMP_OPT("iter-time", INT),      QMP_LAST,
};

static const struct qmp_variant encrypt_variants[] = {
    {"luks", luks_args},
    {NULL, NULL},
};

static const struct qmp_arg encrypt_args[] = {
    QMP_ARG("format", ENUM, .words = encrypt_words),
    QMP_VARIANTS("format", encrypt_variants),
};

static const struct qmp_arg qcow2_args[] = {
    QMP_ARG("file", NODE_REF),
    QMP_OPT("data-file", NODE_REF),
    QMP_OPT("data-file-raw", BOOL),
    QMP_ARG("size", SIZE),
    QMP_OPT("version", ENUM, .words = version_words),
    QMP_OPT("encrypt", OBJECT, .members = encrypt_args),
    QMP_OPT("backing-file", STR),
    QMP_OPT("backing-fmt", ENUM, .words_of = graph_driver_names),
    QMP_OPT("cluster-size", SIZE),
    QMP_OPT("preallocation", ENUM, .words = preallocation_words),
    QMP_OPT("lazy-refcounts", BOOL),
    QMP_OPT("refcount-bits", INT),
    QMP_OPT("compression-type", ENUM, .words = compression_words),
    QMP_OPT("extended-l2", BOOL),
    QMP_LAST,
};

static const char *const auth_words[] = {"cephx", "none", NULL};
static const char *const rbd_luks_words[] = {"luks", "luks2", NULL};

static const struct qmp_arg rbd_server_args[] = {
    QMP_ARG("host", STR),
    QMP_ARG("port", STR),
    QMP_LAST,
};

static const struct qmp_arg rbd_encrypt_args[] = {
    QMP_ARG("format", ENUM, .words = rbd_luks_words),
    QMP_ARG("key-secret", STR),
    QMP_LAST,
};

static const struct qmp_arg rbd_location_args[] = {
    QMP_ARG("pool", STR),
    QMP_OPT("namespace", STR),
    QMP_ARG("image", STR),
    QMP_OPT("conf", STR),
    QMP_OPT("snapshot", STR),
    QMP_OPT("encrypt", OBJECT, .members = rbd_encrypt_args),
    QMP_OPT("user", STR),
    QMP_OPT("auth-client-required", ENUMS, .words = auth_words),
    QMP_OPT("key-secret", STR),
    QMP_OPT("server", OBJECTS, .members = rbd_server_args),
    QMP_LAST,
};

static const struct qmp_arg rbd_args[] = {
    QMP_ARG("location", OBJECT, .members = rbd_location_args),
    QMP_ARG("size", SIZE),
    QMP_OPT("cluster-size", SIZE),
    QMP_LAST,
};

static const struct qmp_variant image_variants[] = {
    {"file", file_args},
    {"qcow2", qcow2_args},
    {"rbd", rbd_args},
    {NULL, NULL},
};

static const struct qmp_arg image_args[] = {
    QMP_ARG("driver", ENUM, .words_of = graph_driver_names),
    QMP_VARIANTS("driver", image_variants),
};

static const struct qmp_arg create_args[] = {
    QMP_ARG("job-id", STR),
    QMP_ARG("options", OBJECT, .members = image_args),
    QMP_LAST,
};

/* Ours have other names here and there; a new reference or NULL. */
static json_t *image_options(json_t *args)
{
    json_t *options = json_object();
    const char *key;
    json_t *value;

    json_object_foreach (args, key, value) {
        CLEANUP_FREE char *name = strdup(strcmp(key, "version") == 0 ? "compat"
                                                                     : key);

        if (strcmp(key, "driver") == 0 || strcmp(key, "file") == 0 ||
            strcmp(key, "filename") == 0 || strcmp(key, "location") == 0) {
            continue;
        }
        for (char *p = name; p && *p; p++) {
            if (*p == '-') {
                *p = '_';
            }
        }
        if (!name || json_object_set(options, name, value) < 0) {
            json_decref(options);
            return NULL;
        }
    }
    return options;
}

/* The name of an image of Ceph; NULL: it is none, or there is no memory. */
static char *location_name(const json_t *args)
{
    const json_t *location = json_object_get(args, "location");
    CLEANUP_FREE char *text = location ? json_dumps(location, JSON_COMPACT)
                                       : NULL;
    char *name;

    return text && asprintf(&name, "json:%s", text) >= 0 ? name : NULL;
}

static int cmd_create(struct qmp_call *call, struct error **errp)
    REQUIRES(call->daemon->jobs->lock)
{
    json_t *args = json_object_get(call->args, "options");
    const char *driver = json_string_value(json_object_get(args, "driver"));
    bool is_file = strcmp(driver, "file") == 0;
    CLEANUP_JSON json_t *options = image_options(args);
    CLEANUP_FREE char *location = location_name(args);
    const char *filename = json_string_value(json_object_get(args, "filename"));
    struct image_options o = {
        .job_id = qmp_str(call, "job-id"),
        .format = is_file ? "raw" : driver,
        .filename = location ? location : filename,
        .file = json_object_get(args, "file"),
        .options = options,
    };

    if (!is_file && strcmp(driver, "qcow2") != 0 &&
        strcmp(driver, "rbd") != 0) {
        return error_set(errp, EINVAL,
                         "Driver does not support blockdev-create");
    }
    return options ? job_create_image(call->daemon->jobs, &o, errp)
                   : error_nomem(errp);
}

const struct qmp_command qmp_create_commands[] = {
    QMP_COMMAND("blockdev-create", cmd_create, create_args),
    QMP_COMMANDS_END,
};
