/* SPDX-License-Identifier: BSD-3-Clause */
/* Words of qemu-io become requests: see qemu-io-parse.h. */
#include "vm/qemu-io-parse.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "nbdelta/bytes.h"
#include "nbdelta/error.h"
#include "nbdelta/size.h"

#define WORDS_MAX 32
/* The longest request that QEMU's block layer takes: whole sectors in an
 * int. */
#define REQUEST_MAX (UINT64_C(0x7fffffff) & ~UINT64_C(511))

struct verb {
    const char *name;
    const char *alias;
    const char *options; /* as for getopt */
    enum io_op op;
    int least; /* words that are no options */
    int most;  /* -1: any number */
    bool aio;
};

static const struct verb verbs[] = {
    {"read", "r", "CP:l:pqs:v", IO_READ, 2, 2, false},
    {"readv", NULL, "CP:qv", IO_READ, 2, -1, false},
    {"write", "w", "CfnpP:qs:uz", IO_WRITE, 2, 2, false},
    {"writev", NULL, "CfqP:", IO_WRITE, 2, -1, false},
    {"aio_read", NULL, "CP:qv", IO_READ, 2, -1, true},
    {"aio_write", NULL, "CfP:quz", IO_WRITE, 2, -1, true},
    {"aio_flush", NULL, "", IO_AIO_FLUSH, 0, 0, false},
    {"discard", "d", "Cq", IO_DISCARD, 2, 2, false},
    {"flush", "f", "", IO_FLUSH, 0, 0, false},
    {"truncate", "t", "", IO_TRUNCATE, 1, 1, false},
    {"length", "l", "", IO_LENGTH, 0, 0, false},
    {"info", "i", "", IO_INFO, 0, 0, false},
    {"alloc", "a", "", IO_ALLOC, 1, 2, false},
    {"map", NULL, "", IO_MAP, 0, 0, false},
    {"sleep", NULL, "", IO_SLEEP, 1, 1, false},
    {"break", NULL, "", IO_BREAK, 2, 2, false},
    {"remove_break", NULL, "", IO_REMOVE_BREAK, 1, 1, false},
    {"resume", NULL, "", IO_RESUME, 1, 1, false},
    {"wait_break", NULL, "", IO_WAIT_BREAK, 1, 1, false},
};

static const struct verb *find_verb(const char *name)
{
    for (size_t i = 0; i < ARRAY_SIZE(verbs); i++) {
        if (strcmp(verbs[i].name, name) == 0 ||
            (verbs[i].alias && strcmp(verbs[i].alias, name) == 0)) {
            return &verbs[i];
        }
    }
    return NULL;
}

static int take_number(const char *text, uint64_t *out, struct error **errp)
{
    int r = size_parse(text, out);

    if (r == -ERANGE) {
        return error_set(errp, EINVAL,
                         "Parsing error: argument too large -- %.200s", text);
    }
    return r < 0 ? error_set(errp, EINVAL,
                             "Parsing error: non-numeric argument, or "
                             "extraneous/unrecognized suffix -- %.200s",
                             text)
                 : 0;
}

static int take_pattern(const char *text, int *out, struct error **errp)
{
    char *end;
    long v = strtol(text, &end, 0);

    if (*end || end == text || v < 0 || v > 255) {
        return error_set(errp, EINVAL, "%.200s is not a valid pattern byte",
                         text);
    }
    *out = (int)v;
    return 0;
}

/* @a->check_len is UINT64_MAX until -l was seen. */
static int take_letter(struct io_args *a, char option, const char *value,
                       struct error **errp)
{
    switch (option) {
    case 'C':
        a->terse = true;
        break;
    case 'P':
        return take_pattern(value, &a->pattern, errp);
    case 'f':
        a->flags |= REQ_FUA;
        break;
    case 'l':
        return take_number(value, &a->check_len, errp);
    case 'n':
        a->flags |= REQ_NO_FALLBACK;
        break;
    case 'q':
        a->quiet = true;
        break;
    case 's':
        if (a->op == IO_READ) {
            return take_number(value, &a->check_from, errp);
        }
        a->file = value;
        break;
    case 'u':
        a->flags |= REQ_MAY_UNMAP;
        break;
    case 'v':
        a->dump = true;
        break;
    case 'z':
        a->zero = true;
        break;
    default: /* p: for old scripts */
        break;
    }
    return 0;
}

/* The letters of one word; their values may be in the next ones. */
static int take_letters(struct io_args *a, const struct verb *v, char **words,
                        int count, int *at, struct error **errp)
{
    int r = 0;

    for (const char *p = words[(*at)++] + 1; r == 0 && *p;) {
        const char *known = *p != ':' ? strchr(v->options, *p) : NULL;
        const char *value = "";
        char option = *p++;

        if (!known) {
            return error_set(errp, EINVAL, "%s: invalid option -- '%c'",
                             v->name, option);
        }
        if (known[1] == ':' && !*p && *at == count) {
            return error_set(errp, EINVAL,
                             "%s: option requires an argument -- '%c'", v->name,
                             option);
        }
        if (known[1] == ':') {
            value = *p ? p : words[(*at)++];
            p = "";
        }
        r = take_letter(a, option, value, errp);
    }
    return r;
}

/* The options come first.  Returns the number of words that they take. */
static int take_leading_options(struct io_args *a, const struct verb *v,
                                char **words, int count, struct error **errp)
{
    int at = 1;

    while (at < count && words[at][0] == '-' && words[at][1]) {
        if (strcmp(words[at], "--") == 0) {
            return at + 1;
        }
        int r = take_letters(a, v, words, count, &at, errp);
        if (r < 0) {
            return r;
        }
    }
    return at;
}

static int check_count(const struct verb *v, int n, struct error **errp)
{
    if (n >= v->least && (v->most < 0 || n <= v->most)) {
        return 0;
    }
    if (*v->options && n > v->least) {
        return error_set(errp, EINVAL, "%s: too many arguments", v->name);
    }
    if (*v->options) {
        return error_set(
            errp, EINVAL,
            "bad argument count %d to %s, expected at least %d arguments", n,
            v->name, v->least);
    }
    if (v->least == v->most) {
        return error_set(errp, EINVAL,
                         "bad argument count %d to %s, expected %d arguments",
                         n, v->name, v->least);
    }
    return error_set(
        errp, EINVAL,
        "bad argument count %d to %s, expected between %d and %d arguments", n,
        v->name, v->least, v->most);
}

static int check_write(const struct io_args *a, int lengths,
                       struct error **errp)
{
    if ((a->flags & REQ_NO_FALLBACK) && !a->zero) {
        return error_set(errp, EINVAL, "-n requires -z to be specified");
    }
    if ((a->flags & REQ_MAY_UNMAP) && !a->zero) {
        return error_set(errp, EINVAL, "-u requires -z to be specified");
    }
    if (a->aio && a->zero && lengths > 1) {
        return error_set(errp, EINVAL,
                         "-z supports only a single length parameter");
    }
    if (a->aio && a->zero && a->pattern >= 0) {
        return error_set(errp, EINVAL,
                         "-z and -P cannot be specified at the same time");
    }
    if ((a->zero ? 1 : 0) + (a->pattern >= 0 ? 1 : 0) + (a->file ? 1 : 0) > 1) {
        return error_set(
            errp, EINVAL,
            "Only one of -z, -P, and -s can be specified at the same time");
    }
    return 0;
}

static int check_read(struct io_args *a, struct error **errp)
{
    bool has_len = a->check_len != UINT64_MAX;

    if (a->pattern < 0 && (has_len || a->check_from > 0)) {
        return error_set(errp, EINVAL, "%s: -s and -l require -P", a->verb);
    }
    if (a->check_from > a->bytes ||
        (has_len && a->check_len > a->bytes - a->check_from)) {
        return error_set(errp, EINVAL,
                         "pattern verification range exceeds end of read data");
    }
    if (!has_len) {
        a->check_len = a->bytes - a->check_from;
    }
    return 0;
}

/* An offset and lengths, one after the other. */
static int take_range(struct io_args *a, char **words, int count,
                      struct error **errp)
{
    bool long_zero = a->op == IO_WRITE && (a->flags & REQ_NO_FALLBACK);
    int r = a->op == IO_WRITE ? check_write(a, count - 1, errp) : 0;

    if (r == 0) {
        r = take_number(words[0], &a->offset, errp);
    }
    for (int i = 1; r == 0 && i < count; i++) {
        uint64_t more;

        r = take_number(words[i], &more, errp);
        if (r == 0 && !long_zero &&
            (more > REQUEST_MAX || a->bytes + more > REQUEST_MAX)) {
            return error_set(
                errp, EINVAL,
                "length cannot exceed %" PRIu64 "%s, given %.200s", REQUEST_MAX,
                strcmp(a->verb, "write") == 0 ? " without -n" : "", words[i]);
        }
        a->bytes += r == 0 ? more : 0;
    }
    return r == 0 && a->op == IO_READ ? check_read(a, errp) : r;
}

static int take_words(struct io_args *a, char **words, int count,
                      struct error **errp)
{
    switch (a->op) {
    case IO_READ:
    case IO_WRITE:
    case IO_DISCARD:
        return take_range(a, words, count, errp);
    case IO_TRUNCATE:
        return take_number(words[0], &a->offset, errp);
    case IO_ALLOC: {
        int r = take_number(words[0], &a->offset, errp);

        a->bytes = 512;
        return r == 0 && count > 1 ? take_number(words[1], &a->bytes, errp) : r;
    }
    case IO_SLEEP: {
        char *end;

        errno = 0;
        a->bytes = strtoul(words[0], &end, 0);
        return *end || errno
                   ? error_set(errp, EINVAL, "%.200s is not a valid number",
                               words[0])
                   : 0;
    }
    case IO_BREAK:
        a->event = words[0];
        a->tag = words[1];
        return 0;
    case IO_REMOVE_BREAK:
    case IO_RESUME:
    case IO_WAIT_BREAK:
        a->tag = words[0];
        return 0;
    default:
        return 0;
    }
}

int io_parse(const char *command, struct io_args *out, struct error **errp)
{
    char *words[WORDS_MAX];
    char *rest;
    char *word;
    int count = 0;

    *out = (struct io_args){.pattern = -1, .check_len = UINT64_MAX};
    out->text = strdup(command);
    if (!out->text) {
        return error_nomem(errp);
    }
    for (int i = 0; i < WORDS_MAX; i++) {
        words[i] = out->text + strlen(command);
    }
    for (char *p = out->text; (word = strtok_r(p, " \t\n", &rest)); p = NULL) {
        if (count == WORDS_MAX) {
            return error_set(errp, EINVAL, "more than %d words", WORDS_MAX);
        }
        words[count++] = word;
    }
    if (count == 0) {
        return 0;
    }
    const struct verb *v = find_verb(words[0]);
    if (!v) {
        return error_set(errp, EINVAL, "command \"%.200s\" not found",
                         words[0]);
    }
    out->op = v->op;
    out->verb = v->name;
    out->aio = v->aio;
    int used = take_leading_options(out, v, words, count, errp);
    int r = used < 0 ? used : check_count(v, count - used, errp);
    return r < 0 ? r : take_words(out, words + used, count - used, errp);
}

void io_args_clear(struct io_args *a)
{
    free(a->text);
    *a = (struct io_args){.pattern = -1};
}
