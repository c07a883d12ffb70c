/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_SOURCE_ADOPT_H
#define NBDELTA_SERVER_SOURCE_ADOPT_H

/*
 * What a run has begun, for a later one that goes on with it
 * ==========================================================
 *
 *   {"instant": WORD, "checkpoint": NAME, "disks": [{"name": "vda", ...}]}
 *
 * The word is random, and part of names that begin makes at the source.  So
 * what has it there is of this instant, whatever has been there before or
 * since.  This identity comes from a file when it is adopted: it is checked
 * like anything foreign.
 */
#include <jansson.h>
#include <stdbool.h>

struct error;
struct source;

#define ADOPT_WORD_MAX 17 /* bytes, with the one at its end */

int adopt_make_word(char word[ADOPT_WORD_MAX], struct error **errp);

/* As begin has left the wanted disks: a new reference, or NULL: no memory. */
json_t *adopt_describe(const struct source *s, const char *word,
                       const char *checkpoint);

/* Its word, if it is one; or NULL. */
const char *adopt_word(const json_t *identity);

/* The new checkpoint, if one was made, and it is of the directory @id; or
 * NULL. */
const char *adopt_checkpoint(const json_t *identity, const char *id);

/* What it says of the disk, or NULL: it was not wanted. */
json_t *adopt_disk(const json_t *identity, const char *name);

/* Are the same disks wanted, since the same checkpoints, with the same new
 * one? */
bool adopt_fits(const struct source *s, const json_t *identity,
                const char *checkpoint);

/* Write size, reason and checkpoint of all wanted disks. */
void adopt_take_disks(struct source *s, const json_t *identity);

/* -ESTALE, with a text. */
int adopt_gone(struct error **errp);

#endif /* NBDELTA_SERVER_SOURCE_ADOPT_H */
