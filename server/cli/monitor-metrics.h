/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_CLI_MONITOR_METRICS_H
#define NBDELTA_SERVER_CLI_MONITOR_METRICS_H

/* What a monitor, of nbdelta or of QEMU, answers, as metrics of Prometheus. */
#include <jansson.h>
#include <stdio.h>

/* The commands to ask, as an array that ends with NULL.  One of them stands for
 * query-blockstats of all nodes. */
#define MONITOR_METRICS_NODES "query-blockstats query-nodes=on"
extern const char *const monitor_metrics_queries[];

struct monitor_answers {
    const char *monitor; /* the label of all samples: its socket */
    json_t *returns;     /* command -> what it has returned; NULL: the monitor
                            does not answer */
    json_t *refused;     /* command -> true: it is known, and was refused */
};

/*
 * Write them to @f.  What a monitor does not know is left out, and so is what
 * has another type than it should have.  -ENOMEM; -EFBIG: see prom_end().
 */
int monitor_metrics_write(FILE *f, const struct monitor_answers *a);

#endif /* NBDELTA_SERVER_CLI_MONITOR_METRICS_H */
