/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Words of bash: see line.h.
 *
 *              '                  "
 *     single <---> unquoted <-----------> double
 *                   |   ^                 |   ^
 *                 \ |   | any           \ |   | any
 *                   +---+                 +---+
 */
#include "complete/line.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Of the word that is being read. */
struct reader {
    struct line *l;
    char *word; /* its bytes so far */
    size_t len;
    bool begun;   /* perhaps with quotes alone */
    size_t piece; /* behind its last break; a quote that is open is one, too */
};

static void take_byte(struct reader *r, char c)
{
    r->word[r->len++] = c;
    r->begun = true;
}

static void begin_word(struct reader *r)
{
    r->len = 0;
    r->begun = false;
    r->piece = 0;
    r->l->skip = 0;
    r->l->tilde = false;
    r->l->unknown = false;
}

static int end_word(struct reader *r)
{
    struct line *l = r->l;
    char **more = realloc(l->words, (l->count + 2) * sizeof(*more));

    if (!more) {
        return -ENOMEM;
    }
    l->words = more;
    more[l->count] = strndup(r->word, r->len);
    more[l->count + 1] = NULL;
    return more[l->count] ? (l->count++, 0) : -ENOMEM;
}

/* Take the byte of @p, which is in quotes; returns the next one. */
static const char *take_quoted(struct reader *r, const char *p)
{
    struct line *l = r->l;

    if (*p == l->quote) {
        l->quote = '\0';
        l->skip = r->piece;
    } else if (l->quote == '"' && *p == '\\' && p[1] &&
               strchr("$`\"\\", p[1])) {
        take_byte(r, *++p);
    } else {
        l->unknown |= l->quote == '"' && strchr("$`", *p);
        take_byte(r, *p);
    }
    return p + 1;
}

static const char *take_plain(struct reader *r, const char *p,
                              const char *breaks)
{
    struct line *l = r->l;

    if (*p == '\'' || *p == '"') {
        l->quote = *p;
        l->skip = r->len;
        r->begun = true;
    } else if (*p == '\\') {
        r->begun = true;
        if (p[1]) {
            take_byte(r, *++p);
        }
    } else {
        l->unknown |= strchr("$`", *p) != NULL;
        l->tilde |= *p == '~' && !r->begun;
        take_byte(r, *p);
        if (strchr(breaks, *p)) {
            l->skip = r->piece = r->len;
        }
    }
    return p + 1;
}

int line_split(struct line *l, const char *text, const char *breaks)
{
    size_t len = strnlen(text, LINE_MAX_BYTES);
    struct reader r = {.l = l};
    int err = 0;

    *l = (struct line)LINE_INIT;
    if (text[len]) {
        return -E2BIG;
    }
    r.word = malloc(len + 1);
    if (!r.word) {
        return -ENOMEM;
    }
    begin_word(&r);
    for (const char *p = text; *p && err == 0;) {
        if (l->quote) {
            p = take_quoted(&r, p);
        } else if (!strchr(" \t\n", *p)) {
            p = take_plain(&r, p, breaks);
        } else {
            err = r.begun ? end_word(&r) : 0;
            begin_word(&r);
            p++;
        }
    }
    if (err == 0) {
        err = end_word(&r);
    }
    free(r.word);
    return err;
}

void line_free(struct line *l)
{
    for (size_t i = 0; i < l->count; i++) {
        free(l->words[i]);
    }
    free(l->words);
    *l = (struct line)LINE_INIT;
}

/* --- Back to bash --- */

static bool is_harmless(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
           (c >= '0' && c <= '9') || (unsigned char)c >= 0x80 ||
           strchr("_./:=@%+,-", c);
}

static void put_byte(const struct line *l, char c, FILE *out)
{
    if (l->quote == '\'' && c == '\'') {
        (void)fputs("'\\''", out);
        return;
    }
    if (l->quote == '"' ? strchr("$`\"\\", c) != NULL
                        : !l->quote && !is_harmless(c)) {
        (void)putc('\\', out);
    }
    (void)putc(c, out);
}

bool line_put(const struct line *l, const char *word, FILE *out)
{
    const char *typed = l->words[l->count - 1];

    /* Between double quotes nothing keeps bash's history from a '!'. */
    if (l->unknown || strncmp(word, typed, l->skip) != 0 ||
        (l->quote == '"' && strchr(word + l->skip, '!'))) {
        return false;
    }
    word += l->skip;
    if (l->tilde && l->skip == 0 && *word == '~') {
        (void)putc(*word++, out);
    }
    for (; *word; word++) {
        put_byte(l, *word, out);
    }
    return true;
}
