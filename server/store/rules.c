/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Which points are kept, see rules.h.
 *
 * For each rule a point has a period: a number that is alike for points of one
 * day, one week...  From the newest point on, a rule keeps a point whose period
 * is another than that of the point it kept before:
 *
 *     Sun 02:30   day 20261129   kept, 1st of --keep-daily 2
 *     Sat 23:00   day 20261128   kept, 2nd
 *     Sat 02:30   day 20261128
 *     Fri 02:30   day 20261127   the rule has kept all that it may
 */
#include "store/rules.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "nbdelta/bytes.h"
#include "nbdelta/error.h"

#define SPAN_PART_MAX 100000 /* of each unit; the clock has no more years */

static const char *const words[] = {"last",    "hourly", "daily",  "weekly",
                                    "monthly", "yearly", "within", "newest"};

const char *rules_word(unsigned bit)
{
    for (unsigned i = 0; i < ARRAY_SIZE(words); i++) {
        if (bit == 1U << i) {
            return words[i];
        }
    }
    return "?";
}

bool rules_any(const struct keep_rules *r)
{
    bool any = r->has_within;

    for (int i = 0; i < RULE_COUNT; i++) {
        any = any || r->count[i] > 0;
    }
    return any;
}

/* --- What users write --- */

/* Digits, at least one, and no number above @max.  Moves *@p behind them. */
static bool take_digits(const char **p, long max, long *n)
{
    const char *start = *p;

    for (*n = 0; **p >= '0' && **p <= '9'; (*p)++) {
        *n = 10 * *n + (**p - '0');
        if (*n > max) {
            return false;
        }
    }
    return *p > start;
}

int rules_parse_count(const char *text, uint32_t *count, struct error **errp)
{
    const char *p = text;
    long n;

    if (strcmp(text, "unlimited") == 0) {
        *count = KEEP_UNLIMITED;
        return 0;
    }
    if (!take_digits(&p, 1000000, &n) || *p != '\0' || n == 0) {
        return error_set(errp, EINVAL,
                         "'%s' is not a number of points to keep, from 1 to "
                         "1000000, or 'unlimited'",
                         text);
    }
    *count = (uint32_t)n;
    return 0;
}

int rules_parse_span(const char *text, struct span *span, struct error **errp)
{
    static const char units[] = "ymdh";
    const char *next = units;
    const char *p = text;
    int parts[4] = {0};
    bool any = false;

    while (*p) {
        long n;
        const char *unit = take_digits(&p, SPAN_PART_MAX, &n) && *p
                               ? strchr(next, *p)
                               : NULL;
        if (!unit) {
            any = false;
            break;
        }
        parts[unit - units] = (int)n;
        any = any || n > 0;
        next = unit + 1;
        p++;
    }
    if (!any) {
        return error_set(errp, EINVAL,
                         "'%s' is not a time span like 2y5m7d3h (years, "
                         "months, days, hours)",
                         text);
    }
    *span = (struct span){parts[0], parts[1], parts[2], parts[3]};
    return 0;
}

/* --- Periods --- */

static struct tm local(int64_t seconds)
{
    const time_t t = (time_t)seconds;
    struct tm tm = {.tm_year = 0};

    (void)localtime_r(&t, &tm);
    return tm;
}

/* Of the week's Thursday: that is the year to which ISO counts the week. */
static int64_t iso_week(struct tm tm)
{
    int monday_is_0 = (tm.tm_wday + 6) % 7;
    int thursday = tm.tm_yday - monday_is_0 + 3;
    int year = tm.tm_year + 1900;
    int before = year - 1;
    bool leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    bool leap_before = (before % 4 == 0 && before % 100 != 0) ||
                       before % 400 == 0;

    if (thursday < 0) {
        year--;
        thursday += leap_before ? 366 : 365;
    } else if (thursday >= (leap ? 366 : 365)) {
        thursday -= leap ? 366 : 365;
        year++;
    }
    return (int64_t)year * 100 + thursday / 7 + 1;
}

/* @age: how many points are newer. */
static int64_t period(enum keep_rule rule, struct tm tm, unsigned age)
{
    int64_t month = (int64_t)(tm.tm_year + 1900) * 100 + tm.tm_mon + 1;
    int64_t day = month * 100 + tm.tm_mday;

    switch (rule) {
    case RULE_HOURLY:
        return day * 100 + tm.tm_hour;
    case RULE_DAILY:
        return day;
    case RULE_WEEKLY:
        return iso_week(tm);
    case RULE_MONTHLY:
        return month;
    case RULE_YEARLY:
        return tm.tm_year;
    case RULE_LAST:
    case RULE_COUNT:
        break;
    }
    return age;
}

/* What is not later than this is not within @span of @newest.  Days that a
 * month lacks are counted on into the next one. */
static int64_t span_start(int64_t newest, const struct span *span)
{
    struct tm tm = local(newest);

    tm.tm_year -= span->years;
    tm.tm_mon -= span->months;
    tm.tm_mday -= span->days;
    tm.tm_isdst = -1;
    time_t t = mktime(&tm);
    return t == (time_t)-1 ? INT64_MIN
                           : (int64_t)t - span->hours * INT64_C(3600);
}

void rules_apply(const struct keep_rules *r, const int64_t *times,
                 unsigned count, unsigned *kept)
{
    uint32_t left[RULE_COUNT];
    int64_t last[RULE_COUNT];

    tzset();
    memcpy(left, r->count, sizeof(left));
    for (int i = 0; i < RULE_COUNT; i++) {
        last[i] = -1;
    }
    for (unsigned age = 0; age < count; age++) {
        unsigned at = count - 1 - age;
        struct tm tm = local(times[at]);

        kept[at] = 0;
        if (r->has_within &&
            times[at] > span_start(times[count - 1], &r->within)) {
            kept[at] |= KEEP_WITHIN;
        }
        for (int i = 0; i < RULE_COUNT; i++) {
            int64_t now = period((enum keep_rule)i, tm, age);

            if (left[i] > 0 && (now != last[i] || at == 0)) {
                kept[at] |= KEEP_BY(i);
                last[i] = now;
                left[i] -= left[i] != KEEP_UNLIMITED;
            }
        }
    }
    if (count > 0 && kept[count - 1] == 0) {
        kept[count - 1] = KEEP_NEWEST;
    }
}
