/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_COMPLETE_COMPLETE_H
#define NBDELTA_SERVER_COMPLETE_COMPLETE_H

/*
 * Completion: what can stand next on a command line
 * =================================================
 *
 *     nbdelta --complete WORD...
 *     nbdelta --complete=bash LINE BREAKS
 *
 * The words are those behind the program's name, without quotes, and the last
 * one is being typed.  LINE is what bash has from the program's name to the
 * cursor (line.h).  offer.h has what is printed.  It ends within a second, has
 * written nothing anywhere, and says nothing about what is wrong.
 */
#include "cli/cli.h"
#include "cli/commands.h"

/* @argv[0] is "--complete" or "--complete=SHELL".  Options are those of the
 * program without a command.  Returns the exit status. */
int complete(int argc, char **argv, const struct sub_command *commands,
             const struct cli_option *options);

#endif /* NBDELTA_SERVER_COMPLETE_COMPLETE_H */
