/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_COMPLETE_OFFER_H
#define NBDELTA_SERVER_COMPLETE_OFFER_H

/*
 * What completion prints
 * ======================
 *
 * A line for each word that can stand in the place of the one that is being
 * typed, as a whole and without quotes, and behind a tab a few words about it:
 *
 *     --format=qcow2 <tab> an image with bitmaps
 *
 * What begins with a tab tells the shell what to complete by itself, and how
 * the word begins before that:
 *
 *     <tab> files <tab> --output=
 *     <tab> directories <tab>
 *
 * For bash the word is what bash puts in the place of the last piece (line.h),
 * with nothing behind it.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

struct line;

#define OFFERS_MAX      5000
#define OFFER_WORD_MAX  4096 /* bytes */
#define OFFER_ABOUT_MAX 200  /* bytes of text that are shown */

struct offers {
    FILE *out;
    const char *typed; /* the word as it is so far */
    size_t head;       /* bytes of it that stay, before what is offered */
    bool no_options;   /* a word that begins with '-' would be an option */
    unsigned count;
    const struct line *line; /* of bash; NULL: of any other */
};

/* What has been typed behind the head. */
const char *offers_rest(const struct offers *o);

/*
 * Offer @text behind the head, if what was typed may become that.  Names come
 * from elsewhere: one that has characters that are not plain (text.h), or was
 * no UTF-8, is left out, because neither a shell nor a terminal would show it
 * as it is.  @about: or NULL; it is made printable.
 */
void offer(struct offers *o, const char *text, const char *about);

/* Offer "TEXTENDING". */
void offer_with(struct offers *o, const char *text, const char *ending,
                const char *about);

/* Offer the words of @list, separated by '|'. */
void offer_words(struct offers *o, const char *list);

/* Let the shell complete the name of a file (of a directory) behind the head.
 */
void offer_files(struct offers *o);
void offer_directories(struct offers *o);

#endif /* NBDELTA_SERVER_COMPLETE_OFFER_H */
