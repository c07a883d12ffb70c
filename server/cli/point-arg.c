/* SPDX-License-Identifier: BSD-3-Clause */
/* DIR[@POINT] of the command line: see point-arg.h. */
#include "cli/point-arg.h"

#include <errno.h>
#include <stdlib.h>

#include "cli/cli.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"

int point_arg_open(const char *command, const char *arg, struct store **sp,
                   const struct store_point **point)
{
    CLEANUP_ERROR struct error *err = NULL;
    CLEANUP_FREE char *dir = NULL;
    const char *word = NULL;

    *point = NULL;
    int r = point_name_split(arg, &dir, &word, &err);
    r = r < 0 ? r : store_open(dir, STORE_READ, command, sp, &err);
    if (r < 0) {
        return cli_error(command, err);
    }
    r = word ? store_find_point(*sp, word, point, &err) : 0;
    if (r == 0) {
        return 0;
    }
    store_close(*sp);
    *sp = NULL;
    int status = cli_error(command, err);
    return r == -ENOENT || r == -EINVAL ? CLI_NONE : status;
}
