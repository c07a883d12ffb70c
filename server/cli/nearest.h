/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_CLI_NEAREST_H
#define NBDELTA_SERVER_CLI_NEAREST_H

/* Which of many names somebody has meant who misspelt one. */

#define NEAREST_MAX 63 /* bytes of a name; longer ones are near to none */

struct nearest {
    const char *word;           /* what was typed */
    char best[NEAREST_MAX + 1]; /* "": nothing is near */
    unsigned distance;          /* of that */
};

/* Begin looking for @word, which is borrowed. */
void nearest_begin(struct nearest *n, const char *word);

/* Look at @name; it may be what is meant. */
void nearest_try(struct nearest *n, const char *name);

#endif /* NBDELTA_SERVER_CLI_NEAREST_H */
