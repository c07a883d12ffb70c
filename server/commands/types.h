/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_COMMANDS_TYPES_H
#define NBDELTA_SERVER_COMMANDS_TYPES_H

/*
 * Types that commands share
 * =========================
 *
 * For query-qmp-schema: the shapes of what blocklib builds for queries.
 * tests/run holds all replies against them.
 */
#include "nbdelta/job.h"
#include "qmp/dispatch.h"

/* Values for qmp_command.ret. */
extern const struct qmp_arg qmp_jobs_type;       /* JobInfo array */
extern const struct qmp_arg qmp_block_jobs_type; /* BlockJobInfo array */
extern const struct qmp_arg qmp_nodes_type;      /* BlockDeviceInfo array */
extern const struct qmp_arg qmp_block_type;      /* BlockInfo array */
extern const struct qmp_arg qmp_stats_type;      /* BlockStats array */
extern const struct qmp_arg qmp_graph_type;      /* XDbgBlockGraph */
extern const struct qmp_arg qmp_schema_type;     /* SchemaInfo array */
extern const struct qmp_arg qmp_snapshot_type;   /* SnapshotInfo */

/* How long guests waited for copies (the members of "delay"). */
extern const struct qmp_arg qmp_delay_members[];

/* JobType, and JobStatus. */
extern const char *const qmp_job_type_words[];
extern const char *const qmp_job_status_words[];

/* BlockdevOnError, and what a word of it, or NULL, means for a job. */
extern const char *const qmp_on_error_words[];
enum job_on_error qmp_on_error_value(const char *word);

/* The format of a file that a job shall make, or open: *format is @word, or
 * NULL for none.  -EINVAL: there is no such format. */
int qmp_format_value(const char *word, const char **format,
                     struct error **errp);

#endif /* NBDELTA_SERVER_COMMANDS_TYPES_H */
