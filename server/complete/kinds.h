/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_COMPLETE_KINDS_H
#define NBDELTA_SERVER_COMPLETE_KINDS_H

/* What can stand for a word of some kind. */
#include <stddef.h>

struct offers;
struct place;

/*
 * Offer all alternatives of the kind of @len bytes at @kind (place.h): words in
 * lower case are offered as they are, and a word in upper case is a row of the
 * table in kinds.c.  A kind without a row is a file's name, as it is in shells.
 */
void kinds_offer(struct offers *o, const struct place *p, const char *kind,
                 size_t len);

#endif /* NBDELTA_SERVER_COMPLETE_KINDS_H */
