/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_CLI_FORMAT_OPTIONS_H
#define NBDELTA_SERVER_CLI_FORMAT_OPTIONS_H

/* The option -o of sub-commands: what an image of some format shall be like. */
#include <jansson.h>
#include <stdbool.h>

struct cli_command;

/* What is told about an option.  The list of those that a format has is the
 * format's own (image.h). */
struct format_option {
    const char *name;
    const char *help;
    const char *values; /* "A|B": what it can be; NULL: more than words tell */
};
/* NULL: nothing is told about it. */
const struct format_option *format_option_find(const char *name);

/* Add what one -o has to the options of those before; "help" sets *help
 * instead.  0, or an exit status with the error printed. */
int format_options_add(const struct cli_command *c, const char *text,
                       json_t *options, bool *help);

/* Print the options @names (ends with NULL; NULL: there are none) of images of
 * @format: an exit status. */
int format_options_print(const struct cli_command *c, const char *format,
                         const char *const *names);

#endif /* NBDELTA_SERVER_CLI_FORMAT_OPTIONS_H */
