/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A monitor's answers as metrics: see monitor-metrics.h.
 *
 * A group is a list out of one answer.  Its labels and its rows say by paths
 * where in an item of the list they are:
 *
 *   [{"node-name": "vda", "image": {"virtual-size": 1048576}}]
 *       label node: "node-name"    row: "image.virtual-size"
 *
 *   nbdelta_node_size_bytes{node="vda"} 1048576
 *
 * Nothing in an answer is trusted: a sample is written only for a value that is
 * there and has the type that the row wants.
 */
#include "cli/monitor-metrics.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>

#include "args.h"
#include "cli/prom.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"

const char *const monitor_metrics_queries[] = {
    "query-version",     "query-name",          "query-block",
    "query-blockstats",  MONITOR_METRICS_NODES, "query-named-block-nodes",
    "query-block-jobs",  "query-jobs",          "query-block-exports",
    "query-nbd-clients", "query-backups",       NULL,
};

/* --- Items. --- */

/* The member of @item at "a.b.c", or NULL. */
static json_t *at(const json_t *item, const char *path)
{
    for (;;) {
        size_t len = strcspn(path, ".");
        char key[64];

        (void)snprintf(key, sizeof(key), "%.*s", (int)len, path);
        json_t *v = json_object_get(item, key);
        if (!v || path[len] == '\0') {
            return v;
        }
        path += len + 1;
        item = v;
    }
}

enum kind {
    NUMBER,
    LIMIT,        /* a number; 0: there is no limit, and no sample */
    NANOSECONDS,  /* told in seconds */
    MICROSECONDS, /* the same */
    FLAG,
    PRESENT, /* 1: there is such a member */
    NOT_OK,  /* 1: it is another word than "ok" */
};

struct row {
    struct prom_family family;
    const char *path;
    enum kind kind;
};

/* A label has the word at @path; an empty one is left out. */
struct label {
    const char *name;
    const char *path;
};

struct group {
    const struct label *labels; /* the first has to be there, unless open */
    bool open;
    const struct row *rows;
    size_t count;
};
#define GROUP(l, r, o)               \
    {                                \
        (l), (o), (r), ARRAY_SIZE(r) \
    }
#define LABELS_MAX 6

/* Of backups by jobs and by clients alike. */
#define DELAY_HELP     "How long guests' writes waited for a copy."
#define DELAY_MAX_HELP "The longest that a guest's write has waited for a copy."

static bool fill_labels(const struct group *g, const json_t *item,
                        struct prom_label labels[LABELS_MAX + 1])
{
    size_t n = 0;

    for (const struct label *l = g->labels; l->name && n < LABELS_MAX; l++) {
        const char *word = json_string_value(at(item, l->path));

        labels[n++] = (struct prom_label){l->name,
                                          word && word[0] ? word : NULL};
    }
    labels[n] = (struct prom_label){NULL, NULL};
    return g->open || labels[0].value;
}

static void put_number(struct prom *p, const struct prom_label *labels,
                       const json_t *v, enum kind kind)
{
    double n = json_number_value(v);

    if (!json_is_number(v) || !(n >= 0) || (kind == LIMIT && n == 0)) {
        return;
    }
    if (kind == NANOSECONDS || kind == MICROSECONDS) {
        prom_sample(p, labels, n / (kind == NANOSECONDS ? 1e9 : 1e6));
    } else if (json_is_integer(v)) {
        prom_count(p, labels, (uint64_t)json_integer_value(v));
    } else {
        prom_sample(p, labels, n);
    }
}

static void put_value(struct prom *p, const struct prom_label *labels,
                      const json_t *v, enum kind kind)
{
    const char *word = json_string_value(v);

    switch (kind) {
    case FLAG:
        if (json_is_boolean(v)) {
            prom_count(p, labels, json_is_true(v));
        }
        break;
    case PRESENT:
        prom_count(p, labels, v != NULL);
        break;
    case NOT_OK:
        if (word) {
            prom_count(p, labels, strcmp(word, "ok") != 0);
        }
        break;
    case NUMBER:
    case LIMIT:
    case NANOSECONDS:
    case MICROSECONDS:
        put_number(p, labels, v, kind);
        break;
    }
}

static void put_group(struct prom *p, const struct group *g, const json_t *list)
{
    struct prom_label labels[LABELS_MAX + 1];
    size_t i;
    json_t *item;

    for (size_t k = 0; k < g->count; k++) {
        prom_begin(p, &g->rows[k].family);
        json_array_foreach (list, i, item) {
            if (fill_labels(g, item, labels)) {
                put_value(p, labels, at(item, g->rows[k].path),
                          g->rows[k].kind);
            }
        }
    }
}

/* One item for each of the list @inner in the items of @list, as @as, with the
 * member @key of the outer one.  NULL: no memory. */
static json_t *flatten(const json_t *list, const char *key, const char *inner,
                       const char *as)
{
    json_t *flat = json_array();
    size_t i;
    json_t *outer;

    json_array_foreach (list, i, outer) {
        const json_t *below = json_object_get(outer, inner);
        size_t k;
        json_t *item;

        json_array_foreach (below, k, item) {
            json_t *o = json_pack("{s:O*, s:O}", key,
                                  json_object_get(outer, key), as, item);

            if (!o || json_array_append_new(flat, o) < 0) {
                json_decref(flat);
                return NULL;
            }
        }
    }
    return flat;
}

/* --- Disks, by what uses them. --- */

static const struct label disk_labels[] = {{"device", "device"},
                                           {"qdev", "qdev"},
                                           {"node", "node-name"},
                                           {NULL, NULL}};

static const struct {
    const char *key;
    const char *word;
} operations[] = {
    {"rd", "read"}, {"wr", "write"}, {"flush", "flush"}, {"unmap", "unmap"}};

/* Their members are those of BlockDeviceStats, around "rd" and so on. */
static const struct operation_row {
    struct prom_family family;
    const char *before;
    const char *behind;
    enum kind kind;
} operation_rows[] = {
    {{"disk_operations_total", PROM_COUNTER, "Requests that have succeeded."},
     "",
     "_operations",
     NUMBER},
    {{"disk_bytes_total", PROM_COUNTER, "Bytes of requests."},
     "",
     "_bytes",
     NUMBER},
    {{"disk_operation_seconds_total", PROM_COUNTER,
      "How long requests took, one after another."},
     "",
     "_total_time_ns",
     NANOSECONDS},
    {{"disk_errors_total", PROM_COUNTER, "Requests that have failed."},
     "failed_",
     "_operations",
     NUMBER},
    {{"disk_invalid_operations_total", PROM_COUNTER,
      "Requests that were refused before anything was done."},
     "invalid_",
     "_operations",
     NUMBER},
    {{"disk_merged_operations_total", PROM_COUNTER,
      "Requests that became a part of others."},
     "",
     "_merged",
     NUMBER},
};

static const struct row disk_rows[] = {
    {{"disk_highest_write_bytes", PROM_GAUGE,
      "Where the write ended that was furthest on in the disk."},
     "stats.wr_highest_offset",
     NUMBER},
    {{"disk_idle_seconds", PROM_GAUGE, "How long there was no request."},
     "stats.idle_time_ns",
     NANOSECONDS},
    {{"disk_armed_bytes", PROM_GAUGE,
      "Regions that a crash makes dirty in bitmaps, for each of these."},
     "driver-specific.armed-bytes",
     NUMBER},
};
static const struct group disks = GROUP(disk_labels, disk_rows, true);

static const struct prom_family latency = {
    "disk_latency_seconds", PROM_HISTOGRAM, "How long single requests took."};

/* The labels of a disk, and the operation. */
static void disk_operation(const json_t *item, const char *word,
                           struct prom_label labels[LABELS_MAX + 1])
{
    size_t n = ARRAY_SIZE(disk_labels) - 1;

    (void)fill_labels(&disks, item, labels);
    labels[n] = (struct prom_label){"operation", word};
    labels[n + 1] = (struct prom_label){NULL, NULL};
}

static const json_t *stat_of(const json_t *item, const char *before, size_t op,
                             const char *behind)
{
    char path[64];

    (void)snprintf(path, sizeof(path), "stats.%s%s%s", before,
                   operations[op].key, behind);
    return at(item, path);
}

static void put_operations(struct prom *p, const struct operation_row *row,
                           const json_t *list)
{
    struct prom_label labels[LABELS_MAX + 1];
    size_t i;
    json_t *item;

    prom_begin(p, &row->family);
    json_array_foreach (list, i, item) {
        for (size_t op = 0; op < ARRAY_SIZE(operations); op++) {
            disk_operation(item, operations[op].word, labels);
            put_value(p, labels, stat_of(item, row->before, op, row->behind),
                      row->kind);
        }
    }
}

/* QEMU counts in histograms after block-latency-histogram-set, so their sum can
 * be of more requests than they have. */
static void put_latencies(struct prom *p, const json_t *list)
{
    struct prom_label labels[LABELS_MAX + 1];
    size_t i;
    json_t *item;

    prom_begin(p, &latency);
    json_array_foreach (list, i, item) {
        for (size_t op = 0; op < ARRAY_SIZE(operations); op++) {
            const json_t *sum = stat_of(item, "", op, "_total_time_ns");

            disk_operation(item, operations[op].word, labels);
            prom_histogram(p, labels,
                           stat_of(item, "", op, "_latency_histogram"),
                           json_number_value(sum));
        }
    }
}

static void put_disks(struct prom *p, const json_t *list)
{
    for (size_t k = 0; k < ARRAY_SIZE(operation_rows); k++) {
        put_operations(p, &operation_rows[k], list);
    }
    put_latencies(p, list);
    put_group(p, &disks, list);
}

/* --- Devices of a guest. --- */
static const struct label device_labels[] = {
    {"device", "device"}, {"qdev", "qdev"}, {NULL, NULL}};
static const struct row device_rows[] = {
    {{"device_io_error", PROM_GAUGE,
      "1: a request of the guest's device has failed, or found no room."},
     "io-status",
     NOT_OK},
    {{"device_limit_bytes_per_second", PROM_GAUGE,
      "The most that the device may read and write."},
     "inserted.bps",
     LIMIT},
    {{"device_limit_read_bytes_per_second", PROM_GAUGE,
      "The most that the device may read."},
     "inserted.bps_rd",
     LIMIT},
    {{"device_limit_written_bytes_per_second", PROM_GAUGE,
      "The most that the device may write."},
     "inserted.bps_wr",
     LIMIT},
    {{"device_limit_operations_per_second", PROM_GAUGE,
      "The most requests of the device."},
     "inserted.iops",
     LIMIT},
    {{"device_limit_read_operations_per_second", PROM_GAUGE,
      "The most requests of the device that read."},
     "inserted.iops_rd",
     LIMIT},
    {{"device_limit_write_operations_per_second", PROM_GAUGE,
      "The most requests of the device that write."},
     "inserted.iops_wr",
     LIMIT},
};
static const struct group devices = GROUP(device_labels, device_rows, true);

/* --- Nodes and bitmaps. --- */

static const struct label node_labels[] = {
    {"node", "node-name"}, {"driver", "drv"}, {NULL, NULL}};
static const struct row node_rows[] = {
    {{"node_size_bytes", PROM_GAUGE, "The size of the disk."},
     "image.virtual-size",
     NUMBER},
    {{"node_allocated_bytes", PROM_GAUGE, "The room that the file takes."},
     "image.actual-size",
     NUMBER},
    {{"node_corrupt", PROM_GAUGE, "1: the image is marked corrupt."},
     "image.format-specific.data.corrupt",
     FLAG},
    {{"node_read_only", PROM_GAUGE, "1: the node is not writable."},
     "ro",
     FLAG},
};
static const struct group nodes = GROUP(node_labels, node_rows, false);

static const struct label bitmap_labels[] = {
    {"bitmap", "bitmap.name"}, {"node", "node-name"}, {NULL, NULL}};
static const struct row bitmap_rows[] = {
    {{"bitmap_dirty_bytes", PROM_GAUGE, "What has changed."},
     "bitmap.count",
     NUMBER},
    {{"bitmap_granularity_bytes", PROM_GAUGE, "What one bit stands for."},
     "bitmap.granularity",
     NUMBER},
    {{"bitmap_recording", PROM_GAUGE, "1: writes are recorded."},
     "bitmap.recording",
     FLAG},
    {{"bitmap_busy", PROM_GAUGE, "1: a job or an export uses it."},
     "bitmap.busy",
     FLAG},
    {{"bitmap_persistent", PROM_GAUGE, "1: it is in the image, too."},
     "bitmap.persistent",
     FLAG},
    {{"bitmap_inconsistent", PROM_GAUGE, "1: nobody can trust it any more."},
     "bitmap.inconsistent",
     FLAG},
};
static const struct group bitmaps = GROUP(bitmap_labels, bitmap_rows, false);

/* --- Jobs and exports. --- */

static const struct label job_labels[] = {
    {"job", "id"}, {"type", "type"}, {NULL, NULL}};
static const struct row job_rows[] = {
    {{"job_progress_current", PROM_GAUGE,
      "How far the job is, in units of its own (bytes of most jobs)."},
     "current-progress",
     NUMBER},
    {{"job_progress_target", PROM_GAUGE,
      "How far the job goes, as far as it knows."},
     "total-progress",
     NUMBER},
    {{"job_failed", PROM_GAUGE, "1: the job has an error."}, "error", PRESENT},
};
static const struct group jobs = GROUP(job_labels, job_rows, false);

static const struct label status_labels[] = {
    {"job", "id"}, {"type", "type"}, {"status", "status"}, {NULL, NULL}};
static const struct row status_rows[] = {
    {{"job_status", PROM_GAUGE, "1: that is what the job does."},
     "status",
     PRESENT},
};
static const struct group statuses = GROUP(status_labels, status_rows, false);

static const struct label block_job_labels[] = {
    {"job", "device"}, {"type", "type"}, {NULL, NULL}};
static const struct row block_job_rows[] = {
    {{"job_limit_bytes_per_second", PROM_GAUGE, "The job's speed, if limited."},
     "speed",
     LIMIT},
    {{"job_paused", PROM_GAUGE, "1: the job stands still."}, "paused", FLAG},
    {{"job_io_error", PROM_GAUGE,
      "1: the job stands still as a request has failed, or found no room."},
     "io-status",
     NOT_OK},
};
static const struct group block_jobs = GROUP(block_job_labels, block_job_rows,
                                             false);

static const struct label export_labels[] = {{"export", "id"},
                                             {"node", "node-name"},
                                             {"type", "type"},
                                             {"server", "server"},
                                             {NULL, NULL}};
static const struct row export_rows[] = {
    {{"export_shutting_down", PROM_GAUGE, "1: the export takes no clients."},
     "shutting-down",
     FLAG},
};
static const struct group exports = GROUP(export_labels, export_rows, false);

/* --- NBD servers of nbdelta. --- */

static const struct label client_labels[] = {{"export", "id"}, {NULL, NULL}};
static const struct row client_rows[] = {
    {{"export_clients", PROM_GAUGE, "Clients that use the export."},
     "clients",
     NUMBER},
};
static const struct group clients = GROUP(client_labels, client_rows, false);

static const struct label server_labels[] = {{"server", "server"},
                                             {NULL, NULL}};
static const struct row server_rows[] = {
    {{"server_clients", PROM_GAUGE, "Connections to the NBD server."},
     "clients",
     NUMBER},
    {{"server_limit_clients", PROM_GAUGE,
      "The most connections at once; others wait."},
     "max-connections",
     LIMIT},
    {{"server_limit_clients_per_address", PROM_GAUGE,
      "The most connections from one address; others are turned away."},
     "max-connections-per-address",
     LIMIT},
    {{"server_turned_away_clients_total", PROM_COUNTER,
      "Clients that were turned away, by a limit or for want of resources."},
     "turned-away",
     NUMBER},
};
static const struct group servers = GROUP(server_labels, server_rows, true);

/* --- Backups that clients pull. --- */

static const struct label pull_labels[] = {{"backup", "id"},
                                           {"node", "disk.node"},
                                           {"export", "disk.export"},
                                           {NULL, NULL}};
static const struct row pull_rows[] = {
    {{"pull_clients", PROM_GAUGE, "Clients that use the disk's export."},
     "disk.clients",
     NUMBER},
    {{"pull_estimate_bytes", PROM_GAUGE, "What was to be pulled."},
     "disk.estimate",
     NUMBER},
    {{"pull_copied_bytes_total", PROM_COUNTER,
      "What was copied before the guest overwrote it."},
     "disk.copied",
     NUMBER},
    {{"pull_read_bytes_total", PROM_COUNTER, "What clients have pulled."},
     "disk.pulled",
     NUMBER},
    {{"pull_discarded_bytes_total", PROM_COUNTER,
      "What clients do not need any more."},
     "disk.discarded",
     NUMBER},
    {{"pull_left_bytes", PROM_GAUGE, "What can be pulled still."},
     "disk.left",
     NUMBER},
    {{"pull_scratch_bytes", PROM_GAUGE,
      "Room that is taken for what the guest has overwritten."},
     "disk.scratch.bytes",
     NUMBER},
    {{"pull_scratch_limit_bytes", PROM_GAUGE, "The most that may be taken."},
     "disk.scratch.quota",
     NUMBER},
    {{"pull_scratch_kept_free_bytes", PROM_GAUGE,
      "What has to stay free in the file system of the scratch."},
     "disk.scratch.keep-free",
     NUMBER},
    {{"pull_lost", PROM_GAUGE, "1: the backup of this disk is of no use."},
     "disk.lost",
     PRESENT},
    {{"pull_guest_delay_max_seconds", PROM_GAUGE, DELAY_MAX_HELP},
     "disk.delay.max-ns",
     NANOSECONDS},
};
static const struct group pulls = GROUP(pull_labels, pull_rows, false);

static const struct prom_family pull_delay = {"pull_guest_delay_seconds",
                                              PROM_HISTOGRAM, DELAY_HELP};

static const struct label backup_labels[] = {
    {"backup", "id"}, {"checkpoint", "checkpoint"}, {NULL, NULL}};
static const struct row backup_rows[] = {
    {{"backup_expires_seconds", PROM_GAUGE,
      "When the backup ends by itself, from now on."},
     "expire",
     NUMBER},
    {{"backup_drained_seconds", PROM_GAUGE,
      "How long guests stood still for its instant."},
     "drained-us",
     MICROSECONDS},
};
static const struct group backups = GROUP(backup_labels, backup_rows, false);

/* --- Backups, by jobs or by clients, as guests feel them. --- */

static const struct label filter_labels[] = {
    {"filter", "node-name"}, {"node", "parent.node-name"}, {NULL, NULL}};
static const struct row filter_rows[] = {
    {{"guest_delay_max_seconds", PROM_GAUGE, DELAY_MAX_HELP},
     "driver-specific.delay.max-ns",
     NANOSECONDS},
};
static const struct group filters = GROUP(filter_labels, filter_rows, false);
static const struct prom_family filter_delay = {"guest_delay_seconds",
                                                PROM_HISTOGRAM, DELAY_HELP};

/* The histogram is at @path of the items. */
static void put_delays(struct prom *p, const struct prom_family *family,
                       const struct group *g, const char *path,
                       const json_t *list)
{
    struct prom_label labels[LABELS_MAX + 1];
    size_t i;
    json_t *item;

    prom_begin(p, family);
    json_array_foreach (list, i, item) {
        const json_t *found = at(item, path);
        const json_t *sum = json_object_get(found, "total-ns");

        if (fill_labels(g, item, labels)) {
            prom_histogram(p, labels, found, json_number_value(sum));
        }
    }
}

/* --- The monitor. --- */

static void put_monitor(struct prom *p, const struct monitor_answers *a)
{
    static const struct prom_family up = {"up", PROM_GAUGE,
                                          "1: the monitor answers."};
    static const struct prom_family info = {
        "monitor_info", PROM_GAUGE, "The version of the monitor; always 1."};
    static const struct prom_family refused = {
        "query_refused", PROM_GAUGE,
        "1: the monitor knows this command, and has refused it."};
    const json_t *version = json_object_get(a->returns, "query-version");
    const char *key;
    json_t *value;
    char number[64];

    prom_begin(p, &up);
    prom_count(p, NULL, a->returns != NULL);
    (void)snprintf(number, sizeof(number),
                   "%" JSON_INTEGER_FORMAT ".%" JSON_INTEGER_FORMAT
                   ".%" JSON_INTEGER_FORMAT,
                   json_integer_value(at(version, "qemu.major")),
                   json_integer_value(at(version, "qemu.minor")),
                   json_integer_value(at(version, "qemu.micro")));
    const struct prom_label labels[] = {
        {"version", number},
        {"package", member_str(version, "package")},
        {"name", json_string_value(at(a->returns, "query-name.name"))},
        {NULL, NULL}};
    prom_begin(p, &info);
    if (version) {
        prom_count(p, labels, 1);
    }
    prom_begin(p, &refused);
    json_object_foreach (a->refused, key, value) {
        prom_count(p, (struct prom_label[]){{"command", key}, {NULL, NULL}}, 1);
    }
}

int monitor_metrics_write(FILE *f, const struct monitor_answers *a)
{
    struct prom p = {
        .f = f, .prefix = "nbdelta_", .common = {"monitor", a->monitor}};
    const json_t *node_list = json_object_get(a->returns,
                                              "query-named-block-nodes");
    const json_t *job_list = json_object_get(a->returns, "query-jobs");
    const json_t *stats_list = json_object_get(a->returns,
                                               MONITOR_METRICS_NODES);
    const json_t *backup_list = json_object_get(a->returns, "query-backups");
    CLEANUP_JSON json_t *bitmap_list = flatten(node_list, "node-name",
                                               "dirty-bitmaps", "bitmap");
    CLEANUP_JSON json_t *pull_list = flatten(backup_list, "id", "disks",
                                             "disk");

    put_monitor(&p, a);
    put_disks(&p, json_object_get(a->returns, "query-blockstats"));
    put_group(&p, &devices, json_object_get(a->returns, "query-block"));
    put_group(&p, &nodes, node_list);
    put_group(&p, &bitmaps, bitmap_list);
    put_group(&p, &jobs, job_list);
    put_group(&p, &statuses, job_list);
    put_group(&p, &block_jobs, json_object_get(a->returns, "query-block-jobs"));
    put_group(&p, &exports, json_object_get(a->returns, "query-block-exports"));
    put_group(&p, &clients, at(a->returns, "query-nbd-clients.exports"));
    put_group(&p, &servers, at(a->returns, "query-nbd-clients.servers"));
    put_group(&p, &backups, backup_list);
    put_group(&p, &pulls, pull_list);
    put_delays(&p, &pull_delay, &pulls, "disk.delay", pull_list);
    put_group(&p, &filters, stats_list);
    put_delays(&p, &filter_delay, &filters, "driver-specific.delay",
               stats_list);
    int r = prom_end(&p);
    return bitmap_list && pull_list ? r : -ENOMEM;
}
