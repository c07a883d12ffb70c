/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_SERVE_OPTION_HELP_H
#define NBDELTA_SERVER_SERVE_OPTION_HELP_H

/* "help" as the value of an option: --object help, --object TYPE,help. */
#include <stdbool.h>

#include "serve/serve-options.h"

/* Does @arg (NULL: none) of the option @code (serve-options.h) ask for help?
 * Then *status is what to exit with, after printing it. */
bool option_help(const struct serve_config *cfg, int code, const char *name,
                 const char *arg, int *status);

#endif /* NBDELTA_SERVER_SERVE_OPTION_HELP_H */
