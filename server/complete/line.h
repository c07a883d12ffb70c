/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_COMPLETE_LINE_H
#define NBDELTA_SERVER_COMPLETE_LINE_H

/*
 * A command line of bash, as it is being typed
 * ============================================
 *
 * bash gives words to a completion as they were typed, with their quotes, and
 * in pieces; what is completed takes the place of the last piece:
 *
 *     nbdelta map --bitmap=my\ bit
 *                          ~~~~~~~   the piece, behind a break character
 *                 ~~~~~~~~~~~~~~~~   the word "--bitmap=my bit"
 *
 * Nothing is expanded or evaluated here.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

#define LINE_MAX_BYTES (1 << 20)

struct line {
    char **words; /* without quotes; ends with NULL */
    size_t count; /* at least 1: the last one is being typed, perhaps "" */

    /* Of the last word. */
    size_t skip;  /* its bytes that come before the piece */
    char quote;   /* that was opened and not closed; 0: none */
    bool tilde;   /* it begins with a ~ that bash would expand */
    bool unknown; /* it has a $ or ` in it: only bash knows what it will be */
};
#define LINE_INIT     \
    {                 \
        .words = NULL \
    }

/* Split @text.  @breaks are bash's COMP_WORDBREAKS.  -ENOMEM, -E2BIG.  Whatever
 * it returns, line_free() is the end. */
int line_split(struct line *l, const char *text, const char *breaks);
void line_free(struct line *l);

/*
 * Print what has to take the place of the piece to make the last word @word, in
 * quotes as they are needed, so that bash will take it for just this.  False,
 * and nothing is printed, if @word does not begin with what comes before the
 * piece, or cannot be written there.
 */
bool line_put(const struct line *l, const char *word, FILE *out);

#endif /* NBDELTA_SERVER_COMPLETE_LINE_H */
