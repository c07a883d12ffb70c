/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_COMPLETE_PLACE_H
#define NBDELTA_SERVER_COMPLETE_PLACE_H

/*
 * Where on a command line the word is that is being typed
 * =======================================================
 *
 * The name of an option, the value of one, or an argument, as the command's own
 * tables have it (cli.h).  A kind says what can stand there: it is what --help
 * calls the value of an option, or a word of the command's `operands`.
 */
#include <stdbool.h>
#include <stddef.h>

#include "cli/cli.h"

struct given {
    const struct cli_option *option;
    const char *value; /* NULL: none */
};

struct place {
    const struct cli_command *command;
    bool naming;      /* the name of an option is typed */
    bool options_end; /* "--" came before */
    size_t head; /* else: bytes of the word that are no part of the value */
    const struct cli_option *option; /* whose value it is; NULL: an argument */

    /* What came before. */
    struct given *given;
    size_t given_count;
    const char **operands; /* borrowed */
    size_t operand_count;
};

/* Look at words[0..count-1], of which the last one is being typed.  -ENOMEM.
 * Whatever it returns, place_free() is the end. */
int place_find(struct place *p, const struct cli_command *c, char *const *words,
               size_t count);
void place_free(struct place *p);

struct operand_kind {
    const char *text;
    size_t len;
    bool
        optional; /* words in brackets: it is taken only if it is one of them */
};

/* The kind of the next argument into kinds[0], and of the one after it into
 * kinds[1] if the first can be left out.  Returns their number. */
int place_kinds(const struct place *p, struct operand_kind *kinds);

/* Is @word one of the alternatives of a kind, A|B? */
bool kind_has(const char *kind, size_t len, const char *word);

/* The first argument whose kind has @word, or NULL. */
const char *place_operand(const struct place *p, const char *word);

/* The value of the last option with this name, or NULL. */
const char *place_value(const struct place *p, const char *option);
bool place_given(const struct place *p, const char *option);

#endif /* NBDELTA_SERVER_COMPLETE_PLACE_H */
