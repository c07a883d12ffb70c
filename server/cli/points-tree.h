/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_CLI_POINTS_TREE_H
#define NBDELTA_SERVER_CLI_POINTS_TREE_H

/* The chains of a backup directory, drawn. */
#include <stdbool.h>
#include <stdio.h>

struct error;
struct store;

/*
 * Draw the chains of each disk: all points, or with @point (a name) those that
 * this one needs.  @utf8: with lines of Unicode, else in ASCII.  Manifests are
 * read again where files are missing, so points of @s change.  Blocks for
 * storage.  -ENOMEM; -ENOENT: @point has gone meanwhile.
 */
int points_tree(struct store *s, const char *point, bool utf8, FILE *f,
                struct error **errp);

#endif /* NBDELTA_SERVER_CLI_POINTS_TREE_H */
