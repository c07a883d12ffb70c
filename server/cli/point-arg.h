/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_CLI_POINT_ARG_H
#define NBDELTA_SERVER_CLI_POINT_ARG_H

/* DIR[@POINT], and the exit status of commands that work on a backup
 * directory. */
#include "store/store.h"

/* Beside EXIT_SUCCESS, EXIT_FAILURE and CLI_USAGE. */
enum {
    POINT_FELL_BACK = 3, /* a point, but a disk is a full that nobody wanted */
    POINT_DAMAGED = 4,   /* something in the directory is damaged */
    POINT_BUSY = 5,      /* somebody else uses it */
    POINT_NONE = 6,      /* there is no such point */
};

/* The status for -errno of the store's functions: POINT_DAMAGED, POINT_BUSY or
 * EXIT_FAILURE. */
int point_exit_of(int r);

/* The same for -errno of the store's functions; prints @err. */
int point_status(const char *command, int r, const struct error *err);

/*
 * Open the directory of @arg for reading, and find its point; *point is NULL
 * where none was named.  0, or the exit status with the error printed.
 */
int point_arg_open(const char *command, const char *arg, struct store **sp,
                   const struct store_point **point);

#endif /* NBDELTA_SERVER_CLI_POINT_ARG_H */
