/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_STORE_RULES_H
#define NBDELTA_SERVER_STORE_RULES_H

/*
 * Which points are kept: restic's rules
 * =====================================
 *
 * Each rule goes from the newest point to the oldest and counts for itself.
 * `daily` keeps the newest point of a day, then that of the next day which has
 * one, until it has kept as many as its number says.  While it still has some
 * to keep, it also keeps the oldest point of all.  A point stays when any rule
 * keeps it.  The newest point always stays.
 *
 * Periods are those of local time (TZ), weeks are ISO's.  An hour that the end
 * of summer time repeats is one hour.  Nothing here blocks or keeps anything.
 */
#include <stdbool.h>
#include <stdint.h>

struct error;

enum keep_rule {
    RULE_LAST,
    RULE_HOURLY,
    RULE_DAILY,
    RULE_WEEKLY,
    RULE_MONTHLY,
    RULE_YEARLY,
    RULE_COUNT
};

/* A time span by the calendar. */
struct span {
    int years, months, days, hours;
};

#define KEEP_UNLIMITED UINT32_MAX

struct keep_rules {
    uint32_t count[RULE_COUNT]; /* 0: no such rule */
    bool has_within;
    struct span within; /* before the newest point, and not before all of it */
};

/* Why a point stays, a set of bits: of a rule, or of these.  0: it goes. */
#define KEEP_BY(rule) (1U << (rule))
#define KEEP_WITHIN   (1U << RULE_COUNT)
#define KEEP_NEWEST   (1U << (RULE_COUNT + 1)) /* though no rule keeps it */

/* "7", or "unlimited".  -EINVAL: it is neither, or 0. */
int rules_parse_count(const char *text, uint32_t *count, struct error **errp);

/* "2y5m7d3h": years, months, days, hours; each once, in this order, and not
 * all of them.  -EINVAL. */
int rules_parse_span(const char *text, struct span *span, struct error **errp);

/* Is there a rule at all? */
bool rules_any(const struct keep_rules *r);

/* @times: seconds since 1970 of @count points, oldest first.  @kept gets why
 * each of them stays. */
void rules_apply(const struct keep_rules *r, const int64_t *times,
                 unsigned count, unsigned *kept);

/* "last", "daily", "within"...; one bit of the set. */
const char *rules_word(unsigned bit);

#endif /* NBDELTA_SERVER_STORE_RULES_H */
