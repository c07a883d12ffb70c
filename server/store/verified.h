/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_STORE_VERIFIED_H
#define NBDELTA_SERVER_STORE_VERIFIED_H

/* The note POINT.verified is written; verify.h has what reads it. */
#include <jansson.h>

#include "store/store.h"

#define VERIFY_PARTS_MAX 1000

/* Put damage into the array @found.  -ENOMEM. */
int verified_add(json_t *found, const char *disk, uint64_t offset,
                 uint64_t bytes);

/* Part @part (from 0) of @parts was verified now, and @found is what was
 * damaged in it.  Durable when it returns 0. */
int verified_write(const struct store *s, const char *point, unsigned part,
                   unsigned parts, json_t *found, struct error **errp);

/* Add the damage @found to what is known; the parts' times stay.  Durable. */
int verified_damage(const struct store *s, const char *point, json_t *found,
                    struct error **errp);

/* Is there damage of the disk that is not marked as lost? */
bool verified_hopes(const struct store *s, const char *point, const char *disk);

/* What is damaged of the disk is @lost from now on, for good; nothing else.
 * Durable. */
int verified_lost(const struct store *s, const char *point, const char *disk,
                  json_t *lost, struct error **errp);

#endif /* NBDELTA_SERVER_STORE_VERIFIED_H */
