/* SPDX-License-Identifier: BSD-3-Clause */

/*
 * JSON values out of a byte stream (parse.h):
 *
 * bytes --lexer--> tokens --brackets--> message text --jansson--> json_t
 *
 * The lexer is a state machine over bytes, so that a message may be split
 * anywhere.  Tokens are appended to the text of the current message as
 * strict JSON: strings in single quotes get double ones, \' becomes ', and
 * integers that do not fit become real numbers (wide.h knows those up to
 * 2^64 - 1).  The message ends when no brace and no bracket is open, or more
 * are closed than were open.  The text then goes to jansson, which judges the
 * grammar.
 *
 * A byte that fits no token ends the message, too.  The lexer then skips to
 * the next byte that looks like structure: a bracket, a comma, a colon or
 * a control character.  Clients may send 0xff to get into a known state.
 */
#include "qmp/parse.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "wide.h"

enum lex_state {
    LEX_START,
    LEX_STRING,
    LEX_ESCAPE,
    LEX_MINUS,
    LEX_ZERO,
    LEX_DIGITS,
    LEX_POINT,
    LEX_FRACTION,
    LEX_E,
    LEX_E_SIGN,
    LEX_EXPONENT,
    LEX_WORD,
    LEX_RECOVERY,
};

struct text {
    char *buf;
    size_t len;
    size_t alloc;
};

const struct qmp_limits qmp_limits_known = {
    .size = (size_t)64 << 20,
    .tokens = (size_t)2 << 20,
    .nesting = QMP_NESTING_MAX,
};
static struct qmp_budget strangers = {.max = (size_t)64 << 20};
const struct qmp_limits qmp_limits_stranger = {
    .size = (size_t)16 << 20,
    .tokens = (size_t)1 << 18,
    .nesting = QMP_NESTING_MAX,
    .budget = &strangers,
};
const struct qmp_limits qmp_limits_reply = {
    .size = (size_t)4 << 30,
    .tokens = SIZE_MAX,
    .nesting = QMP_NESTING_MAX,
};

/* About how many bytes a token takes as a value of jansson. */
#define TOKEN_BYTES 128

struct qmp_parser {
    const struct qmp_limits *limits;
    qmp_value_fn *fn;
    void *opaque;
    enum lex_state state;
    char quote;
    size_t token; /* where the current token begins in the text */
    struct text text;
    size_t tokens;
    size_t charged; /* to the budget */
    size_t reals;   /* in the text so far */
    struct wide_list wide;
    long braces;
    long brackets;
    bool bad_word; /* JSON does not have word[] */
    char word[32];
    bool delivered;
};

struct qmp_parser *qmp_parser_new(const struct qmp_limits *limits,
                                  qmp_value_fn *fn, void *opaque)
{
    struct qmp_parser *p = calloc(1, sizeof(*p));

    if (p) {
        p->limits = limits;
        p->fn = fn;
        p->opaque = opaque;
    }
    return p;
}

/* Give back what the budget was charged with. */
static void release_budget(struct qmp_parser *p)
{
    if (p->limits->budget) {
        (void)atomic_fetch_sub(&p->limits->budget->used, p->charged);
    }
    p->charged = 0;
}

/* Charge the budget with @bytes.  False: other parsers have taken them. */
static bool charge_budget(struct qmp_parser *p, size_t bytes)
{
    struct qmp_budget *b = p->limits->budget;

    if (!b) {
        return true;
    }
    if (atomic_fetch_add(&b->used, bytes) + bytes > b->max) {
        (void)atomic_fetch_sub(&b->used, bytes);
        return false;
    }
    p->charged += bytes;
    return true;
}

void qmp_parser_set_limits(struct qmp_parser *p,
                           const struct qmp_limits *limits)
{
    release_budget(p);
    p->limits = limits;
}

void qmp_parser_free(struct qmp_parser *p)
{
    if (p) {
        release_budget(p);
        wide_clear(&p->wide);
        free(p->text.buf);
        free(p);
    }
}

static void reset_message(struct qmp_parser *p)
{
    if (p->text.alloc > 65536) {
        free(p->text.buf);
        p->text.buf = NULL;
        p->text.alloc = 0;
    }
    p->text.len = 0;
    p->tokens = 0;
    p->reals = 0;
    wide_clear(&p->wide);
    p->braces = 0;
    p->brackets = 0;
    p->bad_word = false;
}

static void deliver_error(struct qmp_parser *p, const char *why)
{
    reset_message(p);
    release_budget(p);
    p->delivered = true;
    p->fn(NULL, why, p->opaque);
}

static bool text_add(struct qmp_parser *p, char c)
{
    struct text *t = &p->text;

    if (t->len == p->limits->size) {
        p->state = LEX_RECOVERY;
        deliver_error(p, "JSON token size limit exceeded");
        return false;
    }
    if (t->len == t->alloc) {
        size_t alloc = t->alloc ? 2 * t->alloc : 256;
        char *buf;

        if (!charge_budget(p, alloc - t->alloc)) {
            p->state = LEX_RECOVERY;
            deliver_error(p, "JSON token size limit exceeded");
            return false;
        }
        buf = realloc(t->buf, alloc);
        if (!buf) {
            p->state = LEX_RECOVERY;
            deliver_error(p, "Out of memory");
            return false;
        }
        t->buf = buf;
        t->alloc = alloc;
    }
    t->buf[t->len++] = c;
    return true;
}

static char printable(signed char c)
{
    if (c < 0x20 || c == 0x7f) {
        c = '?';
    }
    return c;
}

/* @c does not continue the token that begins at p->token. */
static void report_stray(struct qmp_parser *p, unsigned char c)
{
    char why[80];
    char part[33];
    size_t n = 0;

    for (size_t i = p->token; i < p->text.len && n < sizeof(part) - 2; i++) {
        part[n++] = printable(p->text.buf[i]);
    }
    part[n++] = printable((signed char)c);
    part[n] = '\0';
    (void)snprintf(why, sizeof(why), "JSON parse error, stray '%s'", part);
    p->state = LEX_RECOVERY;
    deliver_error(p, why);
}

/* Deliver @value, which is used up.  The parser may begin anew meanwhile. */
static void deliver_value(struct qmp_parser *p, json_t *value)
{
    struct wide_list wide = p->wide;

    p->wide = (struct wide_list){NULL, 0, 0};
    reset_message(p);
    p->delivered = true;
    wide_bind(&wide, value);
    wide_use(&wide);
    p->fn(value, NULL, p->opaque);
    wide_use(NULL);
    wide_clear(&wide);
    json_decref(value);
    release_budget(p);
}

static void parse_message(struct qmp_parser *p)
{
    json_error_t err;
    char why[JSON_ERROR_TEXT_LENGTH + 32];
    json_t *value;

    if (p->bad_word) {
        (void)snprintf(why, sizeof(why),
                       "JSON parse error, invalid keyword '%s'", p->word);
        deliver_error(p, why);
        return;
    }
    value = json_loadb(p->text.buf, p->text.len,
                       JSON_DECODE_ANY | JSON_REJECT_DUPLICATES, &err);
    if (!value) {
        switch (json_error_code(&err)) {
        case json_error_duplicate_key:
            deliver_error(p, "JSON parse error, duplicate key");
            break;
        case json_error_out_of_memory:
            deliver_error(p, "Out of memory");
            break;
        case json_error_invalid_utf8:
            deliver_error(p, "JSON parse error, invalid UTF-8 sequence");
            break;
        default:
            (void)snprintf(why, sizeof(why), "JSON parse error, %s", err.text);
            deliver_error(p, why);
        }
        return;
    }
    deliver_value(p, value);
}

/* The token that ends the text is complete; @kind is its first byte. */
static void end_token(struct qmp_parser *p, char kind)
{
    p->state = LEX_START;
    switch (kind) {
    case '{':
        p->braces++;
        break;
    case '}':
        p->braces--;
        break;
    case '[':
        p->brackets++;
        break;
    case ']':
        p->brackets--;
        break;
    default:
        break;
    }
    if (p->braces >= 0 && p->brackets >= 0 &&
        (p->braces > 0 || p->brackets > 0)) {
        if (++p->tokens > p->limits->tokens || !charge_budget(p, TOKEN_BYTES)) {
            deliver_error(p, "JSON token count limit exceeded");
        } else if (p->braces + p->brackets > p->limits->nesting) {
            deliver_error(p, "JSON nesting depth limit exceeded");
        } else {
            /* So that "1 2" stays two tokens. */
            (void)text_add(p, ' ');
        }
        return;
    }
    parse_message(p);
}

/* The integer that ends the text is no int64.  False: it was too much. */
static bool end_long_integer(struct qmp_parser *p)
{
    const char *digits = p->text.buf + p->token;
    uint64_t n;

    errno = 0;
    n = strtoull(digits, NULL, 10);
    if (errno != ERANGE && digits[0] != '-' &&
        (!charge_budget(p, WIDE_BYTES) || !wide_add(&p->wide, p->reals, n))) {
        p->state = LEX_RECOVERY;
        deliver_error(p, "Out of memory");
        return false;
    }
    p->reals++;
    p->text.len--; /* the '\0' */
    return text_add(p, '.') && text_add(p, '0');
}

/* False: the message was too much. */
static bool end_integer(struct qmp_parser *p)
{
    if (p->text.len - p->token <= 18) {
        return true;
    }
    if (!text_add(p, '\0')) {
        return false;
    }
    errno = 0;
    (void)strtoll(p->text.buf + p->token, NULL, 10);
    if (errno == ERANGE) {
        return end_long_integer(p);
    }
    p->text.len--;
    return true;
}

static void end_number(struct qmp_parser *p)
{
    if (p->state != LEX_ZERO && p->state != LEX_DIGITS) {
        p->reals++;
    } else if (!end_integer(p)) {
        return;
    }
    end_token(p, '0');
}

static void end_word(struct qmp_parser *p)
{
    static const char *const words[] = {"true", "false", "null"};
    const char *word = p->text.buf + p->token;
    size_t len = p->text.len - p->token;
    bool known = false;

    for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
        known = known ||
                (len == strlen(words[i]) && memcmp(word, words[i], len) == 0);
    }
    if (!known && !p->bad_word) {
        p->bad_word = true;
        (void)snprintf(p->word, sizeof(p->word), "%.*s",
                       len > 30 ? 30 : (int)len, word);
    }
    end_token(p, 'a');
}

static bool digit(unsigned char c)
{
    return c >= '0' && c <= '9';
}

static bool lower(unsigned char c)
{
    return c >= 'a' && c <= 'z';
}

static void lex_start(struct qmp_parser *p, unsigned char c)
{
    p->token = p->text.len;
    switch (c) {
    case ' ':
    case '\t':
    case '\r':
    case '\n':
        return;
    case '{':
    case '}':
    case '[':
    case ']':
    case ',':
    case ':':
        if (text_add(p, (char)c)) {
            end_token(p, (char)c);
        }
        return;
    case '"':
    case '\'':
        p->quote = (char)c;
        p->state = LEX_STRING;
        (void)text_add(p, '"');
        return;
    case '-':
        p->state = LEX_MINUS;
        break;
    case '0':
        p->state = LEX_ZERO;
        break;
    default:
        if (digit(c)) {
            p->state = LEX_DIGITS;
        } else if (lower(c)) {
            p->state = LEX_WORD;
        } else {
            report_stray(p, c);
            return;
        }
    }
    (void)text_add(p, (char)c);
}

static void lex_string(struct qmp_parser *p, unsigned char c)
{
    if (c < 0x20 || c >= 0xfe) {
        report_stray(p, c);
    } else if (p->state == LEX_ESCAPE) {
        p->state = LEX_STRING;
        if (c == '\'' || text_add(p, '\\')) {
            (void)text_add(p, (char)c);
        }
    } else if (c == '\\') {
        p->state = LEX_ESCAPE;
    } else if (c == (unsigned char)p->quote) {
        if (text_add(p, '"')) {
            end_token(p, '"');
        }
    } else if (c != '"' || text_add(p, '\\')) {
        (void)text_add(p, (char)c);
    }
}

/*
 * The state of a number after @c.  LEX_START: the number ended before @c.
 * LEX_RECOVERY: it can neither go on with @c nor end before it.
 */
static enum lex_state next_in_number(enum lex_state s, unsigned char c)
{
    bool e = c == 'e' || c == 'E';

    switch (s) {
    case LEX_MINUS:
        return c == '0' ? LEX_ZERO : digit(c) ? LEX_DIGITS : LEX_RECOVERY;
    case LEX_ZERO:
        if (digit(c)) {
            return LEX_RECOVERY;
        }
        return c == '.' ? LEX_POINT : e ? LEX_E : LEX_START;
    case LEX_DIGITS:
        if (digit(c)) {
            return LEX_DIGITS;
        }
        return c == '.' ? LEX_POINT : e ? LEX_E : LEX_START;
    case LEX_POINT:
        return digit(c) ? LEX_FRACTION : LEX_RECOVERY;
    case LEX_FRACTION:
        return digit(c) ? LEX_FRACTION : e ? LEX_E : LEX_START;
    case LEX_E:
        if (c == '+' || c == '-') {
            return LEX_E_SIGN;
        }
        return digit(c) ? LEX_EXPONENT : LEX_RECOVERY;
    case LEX_E_SIGN:
        return digit(c) ? LEX_EXPONENT : LEX_RECOVERY;
    default: /* LEX_EXPONENT */
        return digit(c) ? LEX_EXPONENT : LEX_START;
    }
}

/* False when @c was not used and has to be looked at again. */
static bool lex_number(struct qmp_parser *p, unsigned char c)
{
    enum lex_state next = next_in_number(p->state, c);

    if (next == LEX_START) {
        end_number(p);
        return false;
    }
    if (next == LEX_RECOVERY) {
        report_stray(p, c);
        return true;
    }
    p->state = next;
    (void)text_add(p, (char)c);
    return true;
}

static bool lex_word(struct qmp_parser *p, unsigned char c)
{
    if (!lower(c)) {
        end_word(p);
        return false;
    }
    (void)text_add(p, (char)c);
    return true;
}

static bool lex_recovery(struct qmp_parser *p, unsigned char c)
{
    if (strchr("{}[],:", c) && c != '\0') {
        p->state = LEX_START;
        return false;
    }
    if ((c < 0x20 && c != '\t') || c >= 0xfe) {
        p->state = LEX_START;
    }
    return true;
}

static bool lex_byte(struct qmp_parser *p, unsigned char c)
{
    switch (p->state) {
    case LEX_START:
        lex_start(p, c);
        return true;
    case LEX_STRING:
    case LEX_ESCAPE:
        lex_string(p, c);
        return true;
    case LEX_WORD:
        return lex_word(p, c);
    case LEX_RECOVERY:
        return lex_recovery(p, c);
    default:
        return lex_number(p, c);
    }
}

size_t qmp_parser_feed_one(struct qmp_parser *p, const void *data, size_t len)
{
    const unsigned char *d = data;
    size_t i = 0;

    p->delivered = false;
    while (i < len && !p->delivered) {
        if (lex_byte(p, d[i])) {
            i++;
        }
    }
    return i;
}

void qmp_parser_feed(struct qmp_parser *p, const void *data, size_t len)
{
    size_t done = 0;

    while (done < len) {
        done += qmp_parser_feed_one(p, (const char *)data + done, len - done);
    }
}
