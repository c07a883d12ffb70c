/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The line that `nbdelta points --check` prints, see points-check.h.
 *
 *     NBDELTA WARNING - the oldest verification is 15 d old; 31 points,
 *     latest 2026-11-29T02:30:00Z, 5 h ago | age=18000s;;93600;0 ...
 *     ^ state   ^ what is wrong, worst first        ^ performance data
 */
#include "cli/points-check.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "nbdelta/bytes.h"
#include "nbdelta/error.h"
#include "nbdelta/text.h"
#include "store/health.h"
#include "store/name.h"

#define MINUTE INT64_C(60)
#define HOUR   (60 * MINUTE)
#define DAY    (24 * HOUR)
#define WEEK   (7 * DAY)

#define AGE_MAX (10000 * WEEK)
/* A prune that works for so long does not work. */
#define PRUNE_MAX DAY
/* Clocks of machines may differ by so much. */
#define FUTURE_MAX HOUR

/* --- Ages --- */

static const struct {
    const char *word;
    int64_t seconds;
} units[] = {{"min", MINUTE}, {"h", HOUR}, {"d", DAY}, {"w", WEEK}};

/* The unit that @p begins with, as seconds; moves *@p behind it.  0: none. */
static int64_t take_unit(const char **p)
{
    for (size_t i = 0; i < ARRAY_SIZE(units); i++) {
        size_t length = strlen(units[i].word);

        if (strncmp(*p, units[i].word, length) == 0) {
            *p += length;
            return units[i].seconds;
        }
    }
    return 0;
}

int check_parse_age(const char *text, int64_t *seconds, struct error **errp)
{
    const char *p = text;
    int64_t sum = 0;
    bool good = *p != '\0';

    while (good && *p) {
        const char *start = p;
        int64_t n = 0;

        for (; *p >= '0' && *p <= '9' && n <= AGE_MAX; p++) {
            n = 10 * n + (*p - '0');
        }
        int64_t unit = p > start ? take_unit(&p) : 0;
        good = unit > 0 && n <= AGE_MAX / unit;
        sum += good ? n * unit : 0;
        good = good && sum <= AGE_MAX;
    }
    if (!good || sum == 0) {
        return error_set(errp, EINVAL,
                         "'%s' is not an age like 26h, 14d or 1w12h (up to "
                         "10000w)",
                         text);
    }
    *seconds = sum;
    return 0;
}

static const char *show_age(int64_t seconds, char *out, size_t max)
{
    size_t i = seconds < 2 * HOUR ? 0 : seconds < 2 * DAY ? 1 : 2;

    (void)snprintf(out, max, "%" PRId64 " %s", seconds / units[i].seconds,
                   units[i].word);
    return out;
}

/* --- The line --- */

struct line {
    enum check_state state;
    char text[1000];
    size_t length;
};

__attribute__((format(printf, 2, 0))) static void add(struct line *l,
                                                      const char *fmt,
                                                      va_list args)
{
    size_t room = sizeof(l->text) - l->length;
    int n = vsnprintf(l->text + l->length, room, fmt, args);

    l->length += n < 0 ? 0 : min_u64((size_t)n, room - 1);
}

/* One thing that is wrong.  The worst are told first. */
__attribute__((format(printf, 3, 4))) static void wrong(struct line *l,
                                                        enum check_state state,
                                                        const char *fmt, ...)
{
    va_list args;

    l->state = state > l->state ? state : l->state;
    va_start(args, fmt);
    add(l, fmt, args);
    va_end(args);
}

static const char *plural(uint64_t n)
{
    return n == 1 ? "" : "s";
}

static void look_for_damage(struct line *l, const struct store_health *h)
{
    if (h->points == 0) {
        wrong(l, CHECK_CRITICAL, "there is no point; ");
    }
    if (h->damaged > 0) {
        wrong(l, CHECK_CRITICAL, "%u point%s damaged (%" PRIu64 " range%s); ",
              h->damaged, h->damaged == 1 ? " is" : "s are", h->damages,
              plural(h->damages));
    }
    if (h->unreadable > 0) {
        wrong(l, CHECK_CRITICAL, "%u manifest%s cannot be used; ",
              h->unreadable, plural(h->unreadable));
    }
    if (h->incomplete > 0) {
        wrong(l, CHECK_CRITICAL, "%u point%s incomplete; ", h->incomplete,
              h->incomplete == 1 ? " is" : "s are");
    }
    if (h->first[0]) {
        wrong(l, CHECK_CRITICAL, "%s; ", h->first);
    }
}

static void look_for_ages(struct line *l, const struct store_health *h,
                          const struct check_limits *limits, int64_t now)
{
    char age[32];

    if (h->points > 0 && limits->max_age > 0 &&
        now - h->latest > limits->max_age) {
        wrong(l, CHECK_CRITICAL, "the latest point is %s old; ",
              show_age(now - h->latest, age, sizeof(age)));
    }
    if (h->points > 0 && limits->max_verify_age > 0 &&
        now - h->verified > limits->max_verify_age) {
        wrong(l, CHECK_WARNING, "a point was not verified for %s; ",
              show_age(now - h->verified, age, sizeof(age)));
    }
    if (h->points > 0 && h->latest - now > FUTURE_MAX) {
        wrong(l, CHECK_WARNING, "the latest point is of the future; ");
    }
    if (h->pruning > 0 && now - h->pruning > PRUNE_MAX) {
        wrong(l, CHECK_WARNING, "a prune did not end; ");
    }
}

static void print_limit(int64_t limit)
{
    if (limit > 0) {
        printf("%" PRId64, limit);
    }
}

/* 'label'=value[unit];[warning];[critical];[minimum] */
static void print_data(const struct store_health *h,
                       const struct check_limits *limits, int64_t now)
{
    printf(" | age=");
    if (h->points > 0) {
        printf("%" PRId64 "s;;", now > h->latest ? now - h->latest : 0);
    } else {
        printf("U;;");
    }
    print_limit(limits->max_age);
    printf(";0 verify_age=");
    if (h->points > 0) {
        printf("%" PRId64 "s;", now > h->verified ? now - h->verified : 0);
    } else {
        printf("U;");
    }
    print_limit(limits->max_verify_age);
    printf(";;0 points=%u;;1:;0 damaged=%u;;0;0 unreadable=%u;;0;0 "
           "incomplete=%u;;0;0\n",
           h->points, h->damaged, h->unreadable, h->incomplete);
}

/* It ends at a '|', and at the end of the line. */
static void print_text(enum check_state state, char *text)
{
    static const char *const words[] = {"OK", "WARNING", "CRITICAL", "UNKNOWN"};

    text_make_printable(text);
    for (char *bar = strchr(text, '|'); bar; bar = strchr(bar, '|')) {
        *bar = '/';
    }
    printf("NBDELTA %s - %s", words[state], text);
}

enum check_state check_print(const struct store_health *h,
                             const struct check_limits *limits, int64_t now)
{
    struct line l = {.state = CHECK_OK};
    char name[POINT_NAME_MAX];
    char shown[POINT_SHOWN_MAX] = "?";
    char age[32];

    look_for_damage(&l, h);
    look_for_ages(&l, h, limits, now);
    enum check_state state = l.state;
    if (h->points > 0 && point_name_make(h->latest, NULL, name) == 0) {
        point_name_show(name, shown);
    }
    if (h->points > 0) {
        wrong(
            &l, state, "%u point%s, the latest of %s (%s ago)", h->points,
            plural(h->points), shown,
            show_age(now > h->latest ? now - h->latest : 0, age, sizeof(age)));
    } else if (l.length >= 2) {
        l.text[l.length - 2] = '\0';
    }
    print_text(state, l.text);
    print_data(h, limits, now);
    return state;
}

enum check_state check_print_unknown(const char *why)
{
    struct line l = {.state = CHECK_OK};

    wrong(&l, CHECK_UNKNOWN, "%s", why);
    print_text(CHECK_UNKNOWN, l.text);
    puts("");
    return CHECK_UNKNOWN;
}
