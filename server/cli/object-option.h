/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_CLI_OBJECT_OPTION_H
#define NBDELTA_SERVER_CLI_OBJECT_OPTION_H

/* The option --object of sub-commands that open images. */

struct cli_command;
struct objects;

/* What --help calls it. */
#define OBJECT_OPTION_ARG  "OPTIONS"
#define OBJECT_OPTION_HELP "make an object, as object-add does"

/* Make the object that @text describes.  0, or an exit status with the error
 * printed. */
int object_option(const struct cli_command *c, struct objects *s,
                  const char *text);

#endif /* NBDELTA_SERVER_CLI_OBJECT_OPTION_H */
