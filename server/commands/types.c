/* SPDX-License-Identifier: BSD-3-Clause */
/* The rows that describe what queries return: see types.h. */
#include "commands/types.h"

#include <errno.h>
#include <string.h>

#include "commands/throttle.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"

/* --- Jobs. --- */

const char *const qmp_job_status_words[] = {
    "undefined", "created", "running",  "paused",    "ready", "standby",
    "waiting",   "pending", "aborting", "concluded", "null",  NULL,
};
static const char *const io_status_words[] = {"ok", "failed", "nospace", NULL};

const char *const qmp_job_type_words[] = {
    "commit", "stream", "backup", "mirror", "create", "fetch", NULL};

static const struct qmp_arg job_members[] = {
    QMP_ARG("id", STR),
    QMP_ARG("type", ENUM, .words = qmp_job_type_words),
    QMP_ARG("status", ENUM, .words = qmp_job_status_words),
    QMP_ARG("current-progress", INT),
    QMP_ARG("total-progress", INT),
    QMP_OPT("error", STR),
    QMP_LAST,
};
const struct qmp_arg qmp_jobs_type = QMP_ARG("", OBJECTS,
                                             .members = job_members);

static const struct qmp_arg block_job_members[] = {
    QMP_ARG("type", ENUM, .words = qmp_job_type_words),
    QMP_ARG("device", STR),
    QMP_ARG("len", INT),
    QMP_ARG("offset", INT),
    QMP_ARG("busy", BOOL),
    QMP_ARG("paused", BOOL),
    QMP_ARG("speed", INT),
    QMP_ARG("io-status", ENUM, .words = io_status_words),
    QMP_ARG("ready", BOOL),
    QMP_ARG("status", ENUM, .words = qmp_job_status_words),
    QMP_ARG("auto-finalize", BOOL),
    QMP_ARG("auto-dismiss", BOOL),
    QMP_OPT("error", STR),
    QMP_OPT("actively-synced", BOOL),
    QMP_LAST,
};
const struct qmp_arg qmp_block_jobs_type =
    QMP_ARG("", OBJECTS, .members = block_job_members);

const char *const qmp_on_error_words[] = {"report", "ignore", "enospc",
                                          "stop",   "auto",   NULL};

enum job_on_error qmp_on_error_value(const char *word)
{
    if (!word || strcmp(word, "report") == 0) {
        return ON_ERROR_REPORT;
    }
    if (strcmp(word, "ignore") == 0) {
        return ON_ERROR_IGNORE;
    }
    /* "auto" is up to the device, and there is none. */
    return strcmp(word, "stop") == 0 ? ON_ERROR_STOP : ON_ERROR_ENOSPC;
}

int qmp_format_value(const char *word, const char **format, struct error **errp)
{
    const char *const *names = graph_driver_names();

    *format = word && strcmp(word, "file") == 0 ? "raw" /* the same bytes */
                                                : word;
    while (word && *names && strcmp(*names, word) != 0) {
        names++;
    }
    return *names
               ? 0
               : error_set(errp, EINVAL, "Unknown file format '%.200s'", word);
}

/* --- Nodes. --- */

static const char *const bitmap_flag_words[] = {"in-use", "auto", NULL};
static const struct qmp_arg stored_members[] = {
    QMP_ARG("name", STR),
    QMP_ARG("granularity", INT),
    QMP_ARG("flags", ENUMS, .words = bitmap_flag_words),
    QMP_LAST,
};

static const struct qmp_arg slot_members[] = {
    QMP_ARG("active", BOOL),
    QMP_OPT("iters", INT),
    QMP_OPT("stripes", INT),
    QMP_ARG("key-offset", INT),
    QMP_LAST,
};
static const char *const encrypt_words[] = {"luks", NULL};
static const struct qmp_arg luks_members[] = {
    QMP_ARG("cipher-alg", STR),
    QMP_ARG("cipher-mode", STR),
    QMP_ARG("ivgen-alg", STR),
    QMP_OPT("ivgen-hash-alg", STR),
    QMP_ARG("hash-alg", STR),
    QMP_ARG("detached-header", BOOL),
    QMP_ARG("payload-offset", INT),
    QMP_ARG("master-key-iters", INT),
    QMP_ARG("uuid", STR),
    QMP_ARG("slots", OBJECTS, .members = slot_members),
    QMP_LAST,
};
static const struct qmp_variant encrypt_variants[] = {
    {"luks", luks_members},
    {NULL, NULL},
};
static const struct qmp_arg encrypt_members[] = {
    QMP_ARG("format", ENUM, .words = encrypt_words),
    QMP_VARIANTS("format", encrypt_variants),
};

static const char *const compression_words[] = {"zlib", "zstd", NULL};
static const struct qmp_arg qcow2_members[] = {
    QMP_ARG("compat", STR),
    QMP_OPT("data-file", STR),
    QMP_OPT("data-file-raw", BOOL),
    QMP_OPT("extended-l2", BOOL),
    QMP_OPT("lazy-refcounts", BOOL),
    QMP_OPT("corrupt", BOOL),
    QMP_ARG("refcount-bits", INT),
    QMP_OPT("encrypt", OBJECT, .members = encrypt_members),
    QMP_OPT("bitmaps", OBJECTS, .members = stored_members),
    QMP_ARG("compression-type", ENUM, .words = compression_words),
    QMP_LAST,
};
static const struct qmp_arg qcow2_wrapper[] = {
    QMP_ARG("data", OBJECT, .members = qcow2_members),
    QMP_LAST,
};

static const struct qmp_arg nbd_members[] = {
    QMP_ARG("connections", INT),
    QMP_ARG("multi-conn", BOOL),
    QMP_ARG("rotational", BOOL),
    QMP_OPT("error", STR),
    QMP_LAST,
};
static const struct qmp_arg nbd_wrapper[] = {
    QMP_ARG("data", OBJECT, .members = nbd_members),
    QMP_LAST,
};

static const char *const rbd_luks_words[] = {"luks", "luks2", NULL};
static const struct qmp_arg rbd_members[] = {
    QMP_OPT("encryption-format", ENUM, .words = rbd_luks_words),
    QMP_LAST,
};
static const struct qmp_arg rbd_wrapper[] = {
    QMP_ARG("data", OBJECT, .members = rbd_members),
    QMP_LAST,
};

static const struct qmp_arg no_members[] = {QMP_LAST};
static const struct qmp_arg file_wrapper[] = {
    QMP_ARG("data", OBJECT, .members = no_members),
    QMP_LAST,
};

static const char *const specific_words[] = {"file", "nbd", "qcow2", "rbd",
                                             NULL};
static const struct qmp_variant specific_variants[] = {
    {"file", file_wrapper}, {"nbd", nbd_wrapper}, {"qcow2", qcow2_wrapper},
    {"rbd", rbd_wrapper},   {NULL, NULL},
};
static const struct qmp_arg specific_members[] = {
    QMP_ARG("type", ENUM, .words = specific_words),
    QMP_VARIANTS("type", specific_variants),
};

#define SNAPSHOT_MEMBERS                                                     \
    QMP_ARG("id", STR), QMP_ARG("name", STR), QMP_ARG("vm-state-size", INT), \
        QMP_ARG("date-sec", INT), QMP_ARG("date-nsec", INT),                 \
        QMP_ARG("vm-clock-sec", INT), QMP_ARG("vm-clock-nsec", INT),         \
        QMP_OPT("icount", INT)

static const struct qmp_arg snapshot_members[] = {SNAPSHOT_MEMBERS, QMP_LAST};
const struct qmp_arg qmp_snapshot_type = {.type = QMP_OBJECT,
                                          .members = snapshot_members};

#define IMAGE_MEMBERS                                                 \
    QMP_ARG("filename", STR), QMP_ARG("format", STR),                 \
        QMP_OPT("dirty-flag", BOOL), QMP_OPT("actual-size", INT),     \
        QMP_ARG("virtual-size", INT), QMP_OPT("cluster-size", INT),   \
        QMP_OPT("encrypted", BOOL), QMP_OPT("backing-filename", STR), \
        QMP_OPT("full-backing-filename", STR),                        \
        QMP_OPT("backing-filename-format", STR),                      \
        QMP_OPT("snapshots", OBJECTS, .members = snapshot_members),   \
        QMP_OPT("format-specific", OBJECT, .members = specific_members)

/* An image has the images below it inside. */
static const struct qmp_arg image_members[14];
static const struct qmp_arg image_members[14] = {
    IMAGE_MEMBERS,
    QMP_OPT("backing-image", OBJECT, .members = image_members),
    QMP_LAST,
};

static const struct qmp_arg dirty_members[] = {
    QMP_OPT("name", STR),
    QMP_ARG("count", INT),
    QMP_ARG("granularity", INT),
    QMP_ARG("recording", BOOL),
    QMP_ARG("busy", BOOL),
    QMP_ARG("persistent", BOOL),
    QMP_OPT("inconsistent", BOOL),
    QMP_OPT("inconsistent-reason", STR),
    QMP_LAST,
};

static const struct qmp_arg cache_members[] = {
    QMP_ARG("writeback", BOOL),
    QMP_ARG("direct", BOOL),
    QMP_ARG("no-flush", BOOL),
    QMP_LAST,
};

static const char *const detect_words[] = {"off", "on", "unmap", NULL};

static const struct qmp_arg node_members[] = {
    QMP_ARG("file", STR),
    QMP_OPT("node-name", STR),
    QMP_ARG("active", BOOL),
    QMP_ARG("ro", BOOL),
    QMP_ARG("drv", STR),
    QMP_OPT("backing_file", STR),
    QMP_ARG("backing_file_depth", INT),
    QMP_ARG("encrypted", BOOL),
    QMP_ARG("detect_zeroes", ENUM, .words = detect_words),
    QMP_ARG("bps", INT),
    QMP_ARG("bps_rd", INT),
    QMP_ARG("bps_wr", INT),
    QMP_ARG("iops", INT),
    QMP_ARG("iops_rd", INT),
    QMP_ARG("iops_wr", INT),
    THROTTLE_MEMBERS,
    QMP_ARG("image", OBJECT, .members = image_members),
    QMP_ARG("cache", OBJECT, .members = cache_members),
    QMP_ARG("write_threshold", INT),
    QMP_OPT("dirty-bitmaps", OBJECTS, .members = dirty_members),
    QMP_LAST,
};
const struct qmp_arg qmp_nodes_type = QMP_ARG("", OBJECTS,
                                              .members = node_members);

static const struct qmp_arg block_members[] = {
    QMP_ARG("device", STR),
    QMP_OPT("qdev", STR),
    QMP_ARG("type", STR),
    QMP_ARG("removable", BOOL),
    QMP_ARG("locked", BOOL),
    QMP_OPT("inserted", OBJECT, .members = node_members),
    QMP_OPT("tray_open", BOOL),
    QMP_OPT("io-status", ENUM, .words = io_status_words),
    QMP_LAST,
};
const struct qmp_arg qmp_block_type = QMP_ARG("", OBJECTS,
                                              .members = block_members);

/* --- Statistics, and the graph. --- */

#define COUNTERS(op)                                                   \
    QMP_ARG(op "_operations", INT), QMP_ARG(op "_total_time_ns", INT), \
        QMP_ARG("failed_" op "_operations", INT),                      \
        QMP_ARG("invalid_" op "_operations", INT)
#define BYTE_COUNTERS(op) \
    COUNTERS(op), QMP_ARG(op "_bytes", INT), QMP_ARG(op "_merged", INT)

/* Of intervals that are given to devices; here nobody gives any. */
#define LATENCY(op)                            \
    QMP_ARG("min_" op "_latency_ns", INT),     \
        QMP_ARG("max_" op "_latency_ns", INT), \
        QMP_ARG("avg_" op "_latency_ns", INT)
static const struct qmp_arg timed_members[] = {
    QMP_ARG("interval_length", INT),
    LATENCY("rd"),
    LATENCY("wr"),
    LATENCY("flush"),
    QMP_ARG("avg_rd_queue_depth", NUMBER),
    QMP_ARG("avg_wr_queue_depth", NUMBER),
    QMP_LAST,
};

/* QEMU's are there after block-latency-histogram-set; ours always. */
static const struct qmp_arg histogram_members[] = {
    QMP_ARG("boundaries", INTS),
    QMP_ARG("bins", INTS),
    QMP_LAST,
};
#define HISTOGRAM(op) \
    QMP_OPT(op "_latency_histogram", OBJECT, .members = histogram_members)

static const struct qmp_arg counter_members[] = {
    BYTE_COUNTERS("rd"),
    BYTE_COUNTERS("wr"),
    BYTE_COUNTERS("unmap"),
    COUNTERS("flush"),
    QMP_ARG("wr_highest_offset", INT),
    QMP_OPT("idle_time_ns", INT),
    QMP_ARG("account_invalid", BOOL),
    QMP_ARG("account_failed", BOOL),
    QMP_ARG("timed_stats", OBJECTS, .members = timed_members),
    HISTOGRAM("rd"),
    HISTOGRAM("wr"),
    HISTOGRAM("flush"),
    QMP_LAST,
};

static const char *const own_words[] = {"copy-before-write", "file", "qcow2",
                                        NULL};
static const struct qmp_arg file_members[] = {
    QMP_ARG("discard-nb-ok", INT),
    QMP_ARG("discard-nb-failed", INT),
    QMP_ARG("discard-bytes-ok", INT),
    QMP_LAST,
};
static const struct qmp_arg armed_members[] = {
    QMP_ARG("armed-bytes", INT),
    QMP_LAST,
};
const struct qmp_arg qmp_delay_members[] = {
    QMP_ARG("boundaries", INTS),
    QMP_ARG("bins", INTS),
    QMP_ARG("max-ns", INT),
    QMP_ARG("total-ns", INT),
    QMP_LAST,
};
static const struct qmp_arg cbw_members[] = {
    QMP_OPT("delay", OBJECT, .members = qmp_delay_members),
    QMP_LAST,
};
static const struct qmp_variant own_variants[] = {
    {"copy-before-write", cbw_members},
    {"file", file_members},
    {"qcow2", armed_members},
    {NULL, NULL},
};
static const struct qmp_arg own_members[] = {
    QMP_ARG("driver", ENUM, .words = own_words),
    QMP_VARIANTS("driver", own_variants),
};

static const struct qmp_arg stats_members[8];
static const struct qmp_arg stats_members[8] = {
    QMP_OPT("device", STR),
    QMP_OPT("qdev", STR),
    QMP_OPT("node-name", STR),
    QMP_ARG("stats", OBJECT, .members = counter_members),
    QMP_OPT("driver-specific", OBJECT, .members = own_members),
    QMP_OPT("parent", OBJECT, .members = stats_members),
    QMP_OPT("backing", OBJECT, .members = stats_members),
    QMP_LAST,
};
const struct qmp_arg qmp_stats_type = QMP_ARG("", OBJECTS,
                                              .members = stats_members);

static const char *const vertex_words[] = {"block-backend", "block-job",
                                           "block-driver", NULL};
static const struct qmp_arg vertex_members[] = {
    QMP_ARG("id", INT),
    QMP_ARG("type", ENUM, .words = vertex_words),
    QMP_ARG("name", STR),
    QMP_LAST,
};
static const char *const perm_words[] = {"consistent-read", "write",
                                         "write-unchanged", "resize", NULL};
static const struct qmp_arg edge_members[] = {
    QMP_ARG("parent", INT),
    QMP_ARG("child", INT),
    QMP_ARG("name", STR),
    QMP_ARG("perm", ENUMS, .words = perm_words),
    QMP_ARG("shared-perm", ENUMS, .words = perm_words),
    QMP_LAST,
};
static const struct qmp_arg graph_members[] = {
    QMP_ARG("nodes", OBJECTS, .members = vertex_members),
    QMP_ARG("edges", OBJECTS, .members = edge_members),
    QMP_LAST,
};
const struct qmp_arg qmp_graph_type = QMP_ARG("", OBJECT,
                                              .members = graph_members);

/* --- The schema itself. --- */

static const char *const meta_types[] = {"builtin", "enum",      "array",
                                         "object",  "alternate", "command",
                                         "event",   NULL};

static const char *const json_types[] = {"string",  "number", "int",
                                         "boolean", "null",   "object",
                                         "array",   "value",  NULL};
static const struct qmp_arg builtin_members[] = {
    QMP_ARG("json-type", ENUM, .words = json_types),
    QMP_LAST,
};
static const struct qmp_arg name_members[] = {
    QMP_ARG("name", STR),
    QMP_OPT("features", STRS),
    QMP_LAST,
};
static const struct qmp_arg enum_members[] = {
    QMP_ARG("members", OBJECTS, .members = name_members),
    QMP_ARG("values", STRS, .features = qmp_deprecated),
    QMP_LAST,
};
static const struct qmp_arg array_members[] = {
    QMP_ARG("element-type", STR),
    QMP_LAST,
};
static const struct qmp_arg member_members[] = {
    QMP_ARG("name", STR),
    QMP_ARG("type", STR),
    QMP_OPT("default", ANY),
    QMP_OPT("features", STRS),
    QMP_LAST,
};
static const struct qmp_arg variant_members[] = {
    QMP_ARG("case", STR),
    QMP_ARG("type", STR),
    QMP_LAST,
};
static const struct qmp_arg object_members[] = {
    QMP_ARG("members", OBJECTS, .members = member_members),
    QMP_OPT("tag", STR),
    QMP_OPT("variants", OBJECTS, .members = variant_members),
    QMP_LAST,
};
static const struct qmp_arg type_members[] = {
    QMP_ARG("type", STR),
    QMP_LAST,
};
static const struct qmp_arg alternate_members[] = {
    QMP_ARG("members", OBJECTS, .members = type_members),
    QMP_LAST,
};
static const struct qmp_arg command_members[] = {
    QMP_ARG("arg-type", STR),
    QMP_ARG("ret-type", STR),
    QMP_OPT("allow-oob", BOOL),
    QMP_LAST,
};
static const struct qmp_arg event_members[] = {
    QMP_ARG("arg-type", STR),
    QMP_LAST,
};
static const struct qmp_variant schema_variants[] = {
    {"builtin", builtin_members},     {"enum", enum_members},
    {"array", array_members},         {"object", object_members},
    {"alternate", alternate_members}, {"command", command_members},
    {"event", event_members},         {NULL, NULL},
};
static const struct qmp_arg schema_members[] = {
    QMP_ARG("name", STR),
    QMP_ARG("meta-type", ENUM, .words = meta_types),
    QMP_OPT("features", STRS),
    QMP_VARIANTS("meta-type", schema_variants),
};
const struct qmp_arg qmp_schema_type = QMP_ARG("", OBJECTS,
                                               .members = schema_members);
