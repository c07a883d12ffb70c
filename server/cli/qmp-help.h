/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_CLI_QMP_HELP_H
#define NBDELTA_SERVER_CLI_QMP_HELP_H

/* A monitor's commands and events, for people. */
#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>

#include "cli/nearest.h"

struct schema;

/* Print the names of all commands and events.  -ENOMEM. */
int qmp_help_list(const struct schema *s, FILE *out);

/*
 * Print what the command or event @name takes and returns.  -ENOENT: there is
 * none; @near has the nearest.
 *
 * What is printed is bounded by the size of the schema, whatever that says:
 * the members of a type are told once, and so are the words of an enumeration,
 * if there are many.
 */
int qmp_help_print(const struct schema *s, const char *name, FILE *out,
                   struct nearest *near);

/*
 * What may be wrong with a command that was refused.  True: there is no
 * command of this name, or *unknown, a key of @args, is no argument of it;
 * @near has the nearest.
 */
bool qmp_help_misspelt(const struct schema *s, const char *command,
                       const json_t *args, const char **unknown,
                       struct nearest *near);

#endif /* NBDELTA_SERVER_CLI_QMP_HELP_H */
