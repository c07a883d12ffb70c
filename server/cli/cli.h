/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_CLI_CLI_H
#define NBDELTA_SERVER_CLI_CLI_H

/*
 * What all sub-commands share: options, errors, output.
 *
 * Exit statuses are one table for all commands, in nbdelta(1).  `check` and
 * `compare` keep those of qemu-img and have CLI_LOCKED beside them.
 */
#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

struct error;

/* Beside EXIT_SUCCESS and EXIT_FAILURE, which is all other reasons. */
enum {
    CLI_USAGE = 2,       /* the command line makes no sense */
    CLI_PARTLY = 3,      /* done, but not as it was asked for */
    CLI_DAMAGED = 4,     /* an image, a backup directory or a bitmap is */
    CLI_LOCKED = 5,      /* somebody else uses it */
    CLI_NONE = 6,        /* it is not there */
    CLI_INTERRUPTED = 7, /* a signal came; what had begun is undone, or can be
                            gone on with */
    CLI_UNKNOWN = 8,     /* the daemon goes on; nobody knows how that ends */
};

/* The status for -errno of a function that has failed. */
int cli_status(int r);

/*
 * One option.  The table is the only place that names it: --help and the
 * parser both read it.  An array of them ends with a NULL name.
 */
struct cli_option {
    const char *name; /* long form without its dashes */
    int code;         /* its letter, or from CLI_LONG on: it has none */
    const char *arg;  /* what --help calls the argument, NULL: takes none; with
                         "[=" before it, it may be left out */
    const char *help; /* one line */
};
#define CLI_LONG 256

struct cli_command {
    const char *name;  /* "create" */
    const char *usage; /* "[-f FORMAT] FILE SIZE"; a line per form */
    const char *about; /* what it does; lines end with \n */
    const struct cli_option *options; /* without --help, which all have */
    bool in_order; /* arguments come from cli_next, too, in their place */
    /*
     * What its arguments are, for completion: a kind for each (a row of
     * complete/kinds.c, or words in lower case), or more with '|' between them.
     * "..." behind the last one: and so on.  In brackets: words that may stand
     * there or not.  NULL: there are none.
     */
    const char *operands;
};

/* The code of an argument that comes in its place. */
#define CLI_ARGUMENT 1

/* Be called @name, and not "nbdelta COMMAND", in help and errors. */
void cli_set_program(const char *name);
const char *cli_program(void); /* "nbdelta", if there was no other */

/* Answers of cli_next beside the codes of options. */
enum {
    CLI_END = -1,  /* no more options: arguments start at argv[optind] */
    CLI_HELP = -2, /* help was printed: exit with 0 */
    CLI_BAD = -3,  /* the error was printed: exit with CLI_USAGE */
};

/*
 * The next option of argv[1...], its argument in `optarg`.  Options and
 * arguments may be mixed.
 */
int cli_next(const struct cli_command *c, int argc, char **argv);

/* Print the options of a table, and --help, as --help has them. */
void cli_print_options(const struct cli_option *options);

/* From now on --help of a command prints nothing, but calls @fn. */
void cli_give_help(void (*fn)(const struct cli_command *c));

/* Print `nbdelta: WHAT: why` and return the status for the error's code;
 * cli_failed returns EXIT_FAILURE. */
int cli_error(const char *what, const struct error *err);

/* What stands before each of these lines; stays.  Default: "". */
void cli_mark_errors(const char *mark);
int cli_failed(const char *what, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

/* The same, with a hint at --help; returns CLI_USAGE. */
int cli_usage(const struct cli_command *c, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

/* The same for @text, where a size is wanted. */
int cli_no_size(const struct cli_command *c, const char *text);

/* Parse the argument of --output into *json. */
int cli_output_format(const struct cli_command *c, const char *text,
                      bool *json);

/* 0 when @reply has "return"; otherwise EXIT_FAILURE, with the error printed as
 * one of @what. */
int cli_reply_failed(const char *what, const json_t *reply);

/* Print @j in many lines, as qemu-img does.  Characters that are not printable
 * (text.h) become \u escapes. */
void cli_print_json(const json_t *j);

/* The same in one line, with its end; malloc()ed.  NULL: no memory. */
char *cli_json_line(const json_t *j, size_t *len);

/* Push out standard output: 0, or EXIT_FAILURE when it could not be written,
 * with the error printed. */
int cli_finish(const char *what);

#endif /* NBDELTA_SERVER_CLI_CLI_H */
