/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_CLI_PROM_H
#define NBDELTA_SERVER_CLI_PROM_H

/*
 * Metrics in Prometheus' text format
 * ==================================
 *
 *     # HELP nbdelta_bitmap_dirty_bytes What has changed.
 *     # TYPE nbdelta_bitmap_dirty_bytes gauge
 *     nbdelta_bitmap_dirty_bytes{monitor="qmp.sock",bitmap="b0"} 65536
 *
 * The values of labels may be anything that somebody else has chosen.  What is
 * written is UTF-8 with no character in it that acts on a terminal: these
 * become the text \x1b (\u202e), and a byte that is no UTF-8 becomes U+FFFD.  A
 * value of more than PROM_LABEL_MAX bytes is cut off.  Samples of a family with
 * the same labels are one: the first is written.
 */
#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

struct error;

#define PROM_LABEL_MAX  1024
#define PROM_LABELS_MAX 8
#define PROM_OUTPUT_MAX ((size_t)64 << 20)

enum prom_type { PROM_GAUGE, PROM_COUNTER, PROM_HISTOGRAM };

struct prom_family {
    const char *name; /* counters end in _total */
    enum prom_type type;
    const char *help; /* one sentence without backslashes */
};

struct prom_label {
    const char *name;
    const char *value; /* NULL: the label is left out */
};

struct prom {
    FILE *f;
    const char *prefix;               /* of names */
    struct prom_label common;         /* of all samples */
    const struct prom_family *family; /* the current one */
    bool described;                   /* it has its lines */
    json_t *seen;                     /* its samples */
    size_t written;                   /* bytes */
    int error;                        /* the first one, -errno */
};

/* Begin with @family; it is described with its first sample. */
void prom_begin(struct prom *p, const struct prom_family *family);

/* A sample of the current family.  @labels end with a NULL name; NULL: there
 * are none but the common one. */
void prom_sample(struct prom *p, const struct prom_label *labels, double value);

/* The sample of a whole number; it may have more digits than a double. */
void prom_count(struct prom *p, const struct prom_label *labels,
                uint64_t value);

/*
 * A histogram of QEMU's form: {"boundaries": [ns...], "bins": [counts...]} with
 * one bin more than boundaries.  @sum_ns: of all that was counted.  One that
 * makes no sense is not written.
 */
void prom_histogram(struct prom *p, const struct prom_label *labels,
                    const json_t *histogram, double sum_ns);

/* 0, or the first error: -ENOMEM, -EFBIG (PROM_OUTPUT_MAX). */
int prom_end(struct prom *p);

/*
 * Have @write write metrics, and replace @file by them as a whole; it can be
 * read by everybody.  node_exporter's collector reads names that end in .prom,
 * and so never half a file.  Blocks until the data are durable.  Errors leave
 * @file as it was.
 */
int prom_to_file(const char *file, int (*write)(FILE *f, void *opaque),
                 void *opaque, struct error **errp);

#endif /* NBDELTA_SERVER_CLI_PROM_H */
