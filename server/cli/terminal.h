/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_CLI_TERMINAL_H
#define NBDELTA_SERVER_CLI_TERMINAL_H

/* What standard output can show. */
#include <stdbool.h>

/* Characters in a line: $COLUMNS, or else what the terminal says, or else 80;
 * at least 20 and at most 500. */
unsigned terminal_columns(void);

/* Is it a terminal that has colours, and has the user not set NO_COLOR? */
bool terminal_colours(void);

/* Does the user's locale have UTF-8? */
bool terminal_utf8(void);

#endif /* NBDELTA_SERVER_CLI_TERMINAL_H */
