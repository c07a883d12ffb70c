/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_CLI_POINT_ARG_H
#define NBDELTA_SERVER_CLI_POINT_ARG_H

/* DIR[@POINT] of commands that work on a backup directory. */
#include "store/store.h"

/*
 * Open the directory of @arg for reading, and find its point; *point is NULL
 * where none was named.  0, or the exit status with the error printed.
 */
int point_arg_open(const char *command, const char *arg, struct store **sp,
                   const struct store_point **point);

#endif /* NBDELTA_SERVER_CLI_POINT_ARG_H */
