/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_CLI_QMP_ARGS_H
#define NBDELTA_SERVER_CLI_QMP_ARGS_H

/* Arguments of a QMP command, as a person writes them. */
#include <jansson.h>

struct error;

/*
 * @argv is one JSON object, "-" for one on standard input, or KEY=VALUE words,
 * where dots nest and types are those of our own @command, or guessed.  *args
 * is a new object; on errors it may be something else, or NULL.
 */
int qmp_args_parse(const char *command, int argc, char **argv, json_t **args,
                   struct error **errp);

#endif /* NBDELTA_SERVER_CLI_QMP_ARGS_H */
