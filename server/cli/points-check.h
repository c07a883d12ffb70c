/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_CLI_POINTS_CHECK_H
#define NBDELTA_SERVER_CLI_POINTS_CHECK_H

/* What monitors are told of a backup directory: a line as plugins of Nagios
 * print, and metrics for Prometheus. */
#include <stdint.h>

struct error;
struct store;
struct store_health;

/* The exit status of plugins. */
enum check_state { CHECK_OK, CHECK_WARNING, CHECK_CRITICAL, CHECK_UNKNOWN };

/* Seconds; 0: any age will do. */
struct check_limits {
    int64_t max_age;        /* of the latest point */
    int64_t max_verify_age; /* since all points were verified, or made */
};

/* "26h", "14d", "1w2d": hours, days, weeks, minutes ("min").  -EINVAL. */
int check_parse_age(const char *text, int64_t *seconds, struct error **errp);

/* Print the line of @h as of the instant @now on standard output. */
enum check_state check_print(const struct store_health *h,
                             const struct check_limits *limits, int64_t now);

/* The same when the directory could not be looked at. */
enum check_state check_print_unknown(const char *why);

/*
 * Write metrics in Prometheus' text format to @file.  The file is replaced as
 * a whole, and can be read by everybody.  @dir: as the user has named it.  @s,
 * @h NULL: it could not be looked at, which is a metric, too.  Blocks.
 */
int metrics_write(const char *file, const char *dir, const struct store *s,
                  const struct store_health *h, struct error **errp);

#endif /* NBDELTA_SERVER_CLI_POINTS_CHECK_H */
