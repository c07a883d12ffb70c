/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_CLIENT_TARGET_NAMES_H
#define NBDELTA_SERVER_CLIENT_TARGET_NAMES_H

/* Names of files that a user gives here, and another process opens. */
#include <jansson.h>

struct error;
struct qmp_client;

/* "DIR/NAME" for a relative name, with our working directory; a copy of another
 * one, and of what is no file's name ("json:...", "nbd://...").  NULL, with
 * errno. */
char *target_name_absolute(const char *name);

/*
 * Make the relative names of targets, scratch directories and sockets in @args
 * (NULL is fine) of @command absolute, if the monitor is at a Unix socket and
 * does not run in our working directory.  Other names stay as they are: that of
 * a backing file counts from its image.  @args is changed.  -ENOMEM; -ENOENT:
 * our directory has been removed.
 */
int target_names_resolve(const struct qmp_client *c, const char *command,
                         json_t *args, struct error **errp);

#endif /* NBDELTA_SERVER_CLIENT_TARGET_NAMES_H */
