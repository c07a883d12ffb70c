/* SPDX-License-Identifier: BSD-3-Clause */
/* Options that say which points stay: see keep-options.h. */
#include "cli/keep-options.h"

int keep_option_take(struct keep_rules *rules, int code, const char *arg,
                     struct error **errp)
{
    if (code == RULE_COUNT) {
        rules->has_within = true;
        return rules_parse_span(arg, &rules->within, errp);
    }
    return rules_parse_count(arg, &rules->count[code], errp);
}
