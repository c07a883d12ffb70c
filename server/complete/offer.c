/* SPDX-License-Identifier: BSD-3-Clause */
/* Lines for shells: see offer.h. */
#include "complete/offer.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "complete/line.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/text.h"

const char *offers_rest(const struct offers *o)
{
    return o->typed + o->head;
}

#define REPLACED 0xfffd /* stands for bytes that were no text */

static bool is_plain(const char *s)
{
    while (*s) {
        uint32_t code = 0;
        size_t len = text_char(s, &code);

        if (len == 0 || !text_is_plain(code) || code == REPLACED) {
            return false;
        }
        s += len;
    }
    return true;
}

static void put_about(struct offers *o, const char *about)
{
    char shown[OFFER_ABOUT_MAX + 1] = "";

    memcpy(shown, about, strnlen(about, OFFER_ABOUT_MAX));
    text_make_printable(shown);
    (void)fprintf(o->out, "\t%s", shown);
}

void offer(struct offers *o, const char *text, const char *about)
{
    const char *rest = offers_rest(o);
    CLEANUP_FREE char *word = NULL;

    if (o->no_options && o->head == 0 && *text == '-') {
        return;
    }
    if (o->count >= OFFERS_MAX || !*text || strlen(text) > OFFER_WORD_MAX ||
        strncmp(text, rest, strlen(rest)) != 0) {
        return;
    }
    if (asprintf(&word, "%.*s%s", (int)o->head, o->typed, text) < 0) {
        word = NULL;
        return;
    }
    if (!is_plain(word)) { /* perhaps the user has typed a line end */
        return;
    }
    if (o->line) {
        if (!line_put(o->line, word, o->out)) {
            return;
        }
    } else {
        (void)fputs(word, o->out);
        if (about && *about) {
            put_about(o, about);
        }
    }
    (void)putc('\n', o->out);
    o->count++;
}

void offer_with(struct offers *o, const char *text, const char *ending,
                const char *about)
{
    CLEANUP_FREE char *both = NULL;

    if (asprintf(&both, "%s%s", text, ending) >= 0) {
        offer(o, both, about);
    } else {
        both = NULL;
    }
}

void offer_words(struct offers *o, const char *list)
{
    while (*list) {
        size_t len = strcspn(list, "|");
        CLEANUP_FREE char *word = strndup(list, len);

        if (word) {
            offer(o, word, NULL);
        }
        list += len + (list[len] == '|');
    }
}

/* The head is of the user, but is printed all the same. */
static void put_directive(struct offers *o, const char *what)
{
    CLEANUP_FREE char *head = strndup(o->typed, o->head);

    if (head && is_plain(head)) {
        (void)fprintf(o->out, "\t%s\t%s\n", what, head);
    }
}

void offer_files(struct offers *o)
{
    put_directive(o, "files");
}

void offer_directories(struct offers *o)
{
    put_directive(o, "directories");
}
