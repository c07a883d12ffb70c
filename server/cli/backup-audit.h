/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_CLI_BACKUP_AUDIT_H
#define NBDELTA_SERVER_CLI_BACKUP_AUDIT_H

/*
 * Is what a bitmap calls clean the same as in the parent?
 *
 * A sample of the units (sums.h) of which nothing is in the set of a copy is
 * read and compared.  Each run has another sample.
 */
#include <stdint.h>

struct compare;
struct error;
struct transfer;

/*
 * Choose @percent of the clean units of a disk of @size bytes, at random, one
 * at least.  *units: for each unit, 1: it is chosen; free it.  *bytes: of all
 * that are.  -ENOMEM.
 */
int audit_choose(const struct transfer *set, uint64_t size, double percent,
                 uint8_t **units, uint64_t *bytes);

/* Put what was chosen into the set of the audit. */
void audit_fill(struct transfer *t, uint64_t size, const uint8_t *units);

/* After compare_finish: -EUCLEAN: there are differences; @errp tells the first
 * ones, and how much it is in all. */
int audit_tell(const struct compare *c, struct error **errp);

#endif /* NBDELTA_SERVER_CLI_BACKUP_AUDIT_H */
