/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The nearest of some names: see nearest.h.
 *
 * The distance is how many letters were left out, put in, changed, or swapped
 * with the next one (optimal string alignment).  Case, and '_' for '-', count
 * nothing.  Nearer than a third of the word is near.
 */
#include "cli/nearest.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

#include "nbdelta/bytes.h"

void nearest_begin(struct nearest *n, const char *word)
{
    *n = (struct nearest){.word = word};
    n->distance = (unsigned)strnlen(word, NEAREST_MAX) / 3 + 1;
}

static int plain(char c)
{
    return c == '_' ? '-' : tolower((unsigned char)c);
}

static unsigned min_of(unsigned a, unsigned b)
{
    return a < b ? a : b;
}

static unsigned distance(const char *a, size_t a_len, const char *b,
                         size_t b_len)
{
    /* Of the first i letters of @a and the first j of @b: row i % 3. */
    unsigned rows[3][NEAREST_MAX + 1];

    for (size_t i = 0; i <= a_len; i++) {
        unsigned *row = rows[i % 3];
        const unsigned *last = rows[(i + 2) % 3];
        const unsigned *before = rows[(i + 1) % 3];

        row[0] = (unsigned)i;
        for (size_t j = 1; j <= b_len; j++) {
            if (i == 0) {
                row[j] = (unsigned)j;
                continue;
            }
            bool same = plain(a[i - 1]) == plain(b[j - 1]);

            row[j] = min_of(min_of(last[j], row[j - 1]) + 1,
                            last[j - 1] + !same);
            if (i > 1 && j > 1 && plain(a[i - 1]) == plain(b[j - 2]) &&
                plain(a[i - 2]) == plain(b[j - 1])) {
                row[j] = min_of(row[j], before[j - 2] + 1);
            }
        }
    }
    return rows[a_len % 3][b_len];
}

void nearest_try(struct nearest *n, const char *name)
{
    size_t word_len = strnlen(n->word, NEAREST_MAX + 1);
    size_t len = strnlen(name, NEAREST_MAX + 1);

    if (word_len > NEAREST_MAX || len > NEAREST_MAX) {
        return;
    }
    unsigned d = distance(n->word, word_len, name, len);
    if (d < n->distance) {
        n->distance = d;
        (void)snprintf(n->best, sizeof(n->best), "%s", name);
    }
}
