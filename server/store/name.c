/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Names of points and of disks: see name.h.
 *
 * What a user types for a point is brought into the form of files, digit by
 * digit, and then compared as a beginning:
 *
 *     2026-11-29T02:30:00Z --\
 *     2026-11-29T023000Z -----+-> 20261129T023000Z
 *     20261129T023000Z ------/
 *     2026-11 ----------------> 202611...
 */
#include "store/name.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "nbdelta/bytes.h"
#include "nbdelta/error.h"
#include "nbdelta/text.h"

/* 0000-01-01 to 9999-12-31, without the years that have other lengths. */
#define TIME_MAX INT64_C(253402300799)

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

int point_name_make(int64_t now, const char *after, char *out)
{
    struct tm tm;

    if (after && point_name_time(after) >= now) {
        now = point_name_time(after) + 1;
    }
    if (now < 0 || now > TIME_MAX) {
        return -ERANGE;
    }
    const time_t t = (time_t)now;
    if (!gmtime_r(&t, &tm) || strftime(out, POINT_NAME_MAX, "%Y%m%dT%H%M%SZ",
                                       &tm) != POINT_NAME_LEN) {
        return -ERANGE;
    }
    return 0;
}

/* The digits of [at, at + count) as a number. */
static int number(const char *name, int at, int count)
{
    int n = 0;

    for (int i = at; i < at + count; i++) {
        n = 10 * n + (name[i] - '0');
    }
    return n;
}

int64_t point_name_time(const char *name)
{
    struct tm tm = {
        .tm_year = number(name, 0, 4) - 1900,
        .tm_mon = number(name, 4, 2) - 1,
        .tm_mday = number(name, 6, 2),
        .tm_hour = number(name, 9, 2),
        .tm_min = number(name, 11, 2),
        .tm_sec = number(name, 13, 2),
    };
    return timegm(&tm);
}

bool point_name_valid(const char *name)
{
    static const char form[] = "dddddddd"
                               "Tdddddd"
                               "Z";
    char again[POINT_NAME_MAX];

    for (int i = 0; i < POINT_NAME_MAX; i++) {
        if (form[i] == 'd' ? !is_digit(name[i]) : name[i] != form[i]) {
            return false;
        }
    }
    /* The 31st of February is some other day when it is written again. */
    return point_name_make(point_name_time(name), NULL, again) == 0 &&
           strcmp(again, name) == 0;
}

void point_name_show(const char *name, char *out)
{
    (void)snprintf(out, POINT_SHOWN_MAX, "%.4s-%.2s-%.2sT%.2s:%.2s:%.2sZ", name,
                   name + 4, name + 6, name + 9, name + 11, name + 13);
}

/* --- What a user calls a point --- */

/* Bring @word into the form of files.  Dashes may stand in the date, colons in
 * the time, each in its place.  False: it is not the beginning of an instant.
 */
static bool canonical_word(const char *word, char *out)
{
    int n = 0;

    for (; *word; word++) {
        if ((*word == '-' && (n == 4 || n == 6)) ||
            (*word == ':' && (n == 11 || n == 13))) {
            if (word[1] == '-' || word[1] == ':') {
                return false;
            }
            continue;
        }
        char want = (char)(n == 8 ? 'T' : n == 15 ? 'Z' : 'd');
        if (n == POINT_NAME_LEN ||
            (want == 'd' ? !is_digit(*word) : *word != want)) {
            return false;
        }
        out[n++] = *word;
    }
    out[n] = '\0';
    return n > 0;
}

/* "latest", "latest~12": how many before the last.  False: it is neither. */
static bool latest_word(const char *word, unsigned *back)
{
    if (strncmp(word, "latest", 6) != 0) {
        return false;
    }
    word += 6;
    *back = 0;
    if (*word == '\0') {
        return true;
    }
    if (*word++ != '~' || *word == '\0' || strlen(word) > 6) {
        return false;
    }
    for (; is_digit(*word); word++) {
        *back = 10 * *back + (unsigned)(*word - '0');
    }
    return *word == '\0';
}

static int find_latest(unsigned count, unsigned back, unsigned *found,
                       struct error **errp)
{
    if (count == 0) {
        return error_set(errp, ENOENT, "there is no point yet");
    }
    if (back >= count) {
        return error_set(errp, ENOENT, "there %s only %u point%s",
                         count == 1 ? "is" : "are", count,
                         count == 1 ? "" : "s");
    }
    *found = count - 1 - back;
    return 0;
}

int point_name_find(const char *const *names, unsigned count, const char *word,
                    unsigned *found, struct error **errp)
{
    char begin[POINT_NAME_MAX];
    unsigned back;
    unsigned hits = 0;

    if (latest_word(word, &back)) {
        return find_latest(count, back, found, errp);
    }
    if (!canonical_word(word, begin)) {
        return error_set(errp, EINVAL,
                         "'%s' is not a point: it is the beginning of a time "
                         "like 2026-11-29T023000Z, or latest, or latest~1",
                         word);
    }
    for (unsigned i = 0; i < count; i++) {
        if (strncmp(names[i], begin, strlen(begin)) == 0) {
            *found = hits++ == 0 ? i : *found;
        }
    }
    if (hits == 0) {
        return error_set(errp, ENOENT, "there is no point '%s'", word);
    }
    if (hits > 1) {
        return error_set(errp, EINVAL,
                         "'%s' is the beginning of %u points, of %s and others",
                         word, hits, names[*found]);
    }
    return 0;
}

int point_name_split(const char *arg, char **dir, const char **word,
                     struct error **errp)
{
    struct stat st;
    const char *at = strrchr(arg, '@');

    *word = NULL;
    if (at && !strchr(at, '/') && stat(arg, &st) < 0) {
        if (at[1] == '\0' || at == arg) {
            return error_set(errp, EINVAL, "'%s' has no %s its '@'", arg,
                             at == arg ? "directory before" : "point behind");
        }
        *word = at + 1;
    }
    *dir = *word ? strndup(arg, (size_t)(at - arg)) : strdup(arg);
    return *dir ? 0 : error_nomem(errp);
}

bool point_name_is_directory(const char *arg, char **dir, const char **word)
{
    struct stat st;

    return point_name_split(arg, dir, word, NULL) == 0 &&
           stat(*dir, &st) == 0 && S_ISDIR(st.st_mode);
}

/* --- Disks --- */

static bool ends_with(const char *s, const char *end)
{
    size_t a = strlen(s);
    size_t b = strlen(end);

    return a >= b && strcmp(s + a - b, end) == 0;
}

/* Names of files that are, or will be, beside the folders. */
static bool is_reserved(const char *name)
{
    static const char *const ends[] = {".json", ".xml", ".pending",
                                       ".verified"};

    for (size_t i = 0; i < ARRAY_SIZE(ends); i++) {
        if (ends_with(name, ends[i])) {
            return true;
        }
    }
    return strcmp(name, "lock") == 0 || strncmp(name, "tmp.", 4) == 0;
}

int disk_name_check(const char *name, struct error **errp)
{
    uint32_t code;

    if (name[0] == '\0') {
        return error_set(errp, EINVAL, "the name of a disk is empty");
    }
    if (strlen(name) > DISK_NAME_MAX) {
        return error_set(errp, EINVAL,
                         "the name of disk '%.40s...' has more than %d bytes",
                         name, DISK_NAME_MAX);
    }
    for (const char *p = name; *p;) {
        size_t len = text_char(p, &code);

        if (len == 0 || !text_is_plain(code)) {
            return error_set(errp, EINVAL,
                             "the name of disk '%s' has a control character, "
                             "or is not UTF-8",
                             name);
        }
        if (code == '/' || code == ':') {
            return error_set(errp, EINVAL,
                             "the name of disk '%s' has a '%c' in it", name,
                             (char)code);
        }
        p += len;
    }
    if (name[0] == '.' || name[0] == '-') {
        return error_set(errp, EINVAL, "the name of disk '%s' begins with '%c'",
                         name, name[0]);
    }
    if (is_reserved(name)) {
        return error_set(errp, EINVAL,
                         "a disk cannot be called '%s' here: that is the name "
                         "of a file of the directory",
                         name);
    }
    return 0;
}
