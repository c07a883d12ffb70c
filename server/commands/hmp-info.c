/* SPDX-License-Identifier: BSD-3-Clause */
/* info block, info block-jobs: see hmp-info.h. */
#include "commands/hmp-info.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "args.h"

static bool is_on(const json_t *o, const char *key)
{
    return json_is_true(json_object_get(o, key));
}

static long long number(const json_t *o, const char *key)
{
    return (long long)json_integer_value(json_object_get(o, key));
}

static void print_name(FILE *f, const json_t *device, const json_t *node)
{
    const char *name = member_str(device, "device");
    const char *node_name = member_str(node, "node-name");
    const char *qdev = member_str(device, "qdev");

    if (name && *name) {
        (void)fputs(name, f);
        if (node_name) {
            (void)fprintf(f, " (%s)", node_name);
        }
    } else {
        (void)fputs(qdev ? qdev : node_name ? node_name : "<anonymous>", f);
    }
}

static void print_limits(FILE *f, const json_t *node)
{
    static const char *const words[] = {
        "bps",         "bps_rd",      "bps_wr",   "bps_max", "bps_rd_max",
        "bps_wr_max",  "iops",        "iops_rd",  "iops_wr", "iops_max",
        "iops_rd_max", "iops_wr_max", "iops_size"};
    if (!json_object_get(node, "group")) {
        return;
    }
    (void)fputs("    I/O throttling:  ", f);
    for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
        (void)fprintf(f, " %s=%lld", words[i], number(node, words[i]));
    }
    (void)fprintf(f, " group=%s\r\n", member_str(node, "group"));
}

static void print_node(FILE *f, const json_t *node)
{
    const json_t *cache = json_object_get(node, "cache");
    const char *backing = member_str(node, "backing_file");
    const char *detect = member_str(node, "detect_zeroes");

    (void)fprintf(f, "    Cache mode:       %s%s%s\r\n",
                  is_on(cache, "writeback") ? "writeback" : "writethrough",
                  is_on(cache, "direct") ? ", direct" : "",
                  is_on(cache, "no-flush") ? ", ignore flushes" : "");
    if (backing) {
        (void)fprintf(f, "    Backing file:     %s (chain depth: %lld)\r\n",
                      backing, number(node, "backing_file_depth"));
    }
    if (detect && strcmp(detect, "off") != 0) {
        (void)fprintf(f, "    Detect zeroes:    %s\r\n", detect);
    }
    print_limits(f, node);
}

static void print_device(FILE *f, const json_t *device)
{
    const json_t *node = json_object_get(device, "inserted");
    const char *qdev = member_str(device, "qdev");

    print_name(f, device, node);
    if (node) {
        (void)fprintf(f, ": %s (%s%s%s)\r\n", member_str(node, "file"),
                      member_str(node, "drv"),
                      is_on(node, "ro") ? ", read-only" : "",
                      is_on(node, "encrypted") ? ", encrypted" : "");
    } else {
        (void)fputs(": [not inserted]\r\n", f);
    }
    if (qdev) {
        (void)fprintf(f, "    Attached to:      %s\r\n", qdev);
    }
    if (node) {
        print_node(f, node);
    }
}

static bool is_meant(const json_t *device, const char *name)
{
    const json_t *node = json_object_get(device, "inserted");
    const char *const names[] = {member_str(device, "device"),
                                 member_str(device, "qdev"),
                                 member_str(node, "node-name")};

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        if (names[i] && strcmp(names[i], name) == 0) {
            return true;
        }
    }
    return false;
}

char *hmp_info_block(const json_t *devices, const char *only)
{
    char *text = NULL;
    size_t len = 0;
    FILE *f = open_memstream(&text, &len);
    bool first = true;
    size_t i;
    json_t *device;

    if (!f) {
        return NULL;
    }
    json_array_foreach (devices, i, device) {
        if (only && !is_meant(device, only)) {
            continue;
        }
        if (!first) {
            (void)fputs("\r\n", f);
        }
        first = false;
        print_device(f, device);
    }
    if (fclose(f) != 0) {
        free(text);
        return NULL;
    }
    return text;
}

char *hmp_info_jobs(const json_t *jobs)
{
    char *text = NULL;
    size_t len = 0;
    FILE *f = open_memstream(&text, &len);
    size_t i;
    json_t *job;

    if (!f) {
        return NULL;
    }
    json_array_foreach (jobs, i, job) {
        const char *type = member_str(job, "type");
        bool stream = type && strcmp(type, "stream") == 0;

        (void)fprintf(f,
                      "%s%s%sdevice %s: Completed %lld of %lld bytes, speed "
                      "limit %lld bytes/s\r\n",
                      stream ? "Streaming " : "Type ", stream ? "" : type,
                      stream ? "" : ", ", member_str(job, "device"),
                      number(job, "offset"), number(job, "len"),
                      number(job, "speed"));
    }
    if (json_array_size(jobs) == 0) {
        (void)fputs("No active jobs\r\n", f);
    }
    if (fclose(f) != 0) {
        free(text);
        return NULL;
    }
    return text;
}
