/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_CLI_KEEP_OPTIONS_H
#define NBDELTA_SERVER_CLI_KEEP_OPTIONS_H

/* Options that say which points stay, of the commands that remove points. */
#include <stdbool.h>

#include "store/rules.h"

struct error;

#define KEEP_OPTION_COUNT (RULE_COUNT + 1)

/* The rows of a table of options (cli.h), with codes from @first on. */
#define KEEP_OPTION_ROWS(first)                                              \
    {"keep-last", (first) + RULE_LAST, "N", "keep the last N points"},       \
        {"keep-hourly", (first) + RULE_HOURLY, "N",                          \
         "keep the newest point of each of the last N hours"},               \
        {"keep-daily", (first) + RULE_DAILY, "N", "... of the last N days"}, \
        {"keep-weekly", (first) + RULE_WEEKLY, "N",                          \
         "... of the last N weeks"},                                         \
        {"keep-monthly", (first) + RULE_MONTHLY, "N",                        \
         "... of the last N months"},                                        \
        {"keep-yearly", (first) + RULE_YEARLY, "N",                          \
         "... of the last N years"},                                         \
    {                                                                        \
        "keep-within", (first) + RULE_COUNT, "SPAN",                         \
            "keep all points within SPAN of the latest: 1y6m14d12h"          \
    }

/* Is the option with this code, which counts from `first`, one of these? */
static inline bool keep_option_is(int code)
{
    return code >= 0 && code < KEEP_OPTION_COUNT;
}

/* Take it.  -EINVAL. */
int keep_option_take(struct keep_rules *rules, int code, const char *arg,
                     struct error **errp);

#endif /* NBDELTA_SERVER_CLI_KEEP_OPTIONS_H */
