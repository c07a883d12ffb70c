/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_STORE_RESUME_H
#define NBDELTA_SERVER_STORE_RESUME_H

/*
 * A copy that was cut off, and can be gone on with
 * ================================================
 *
 *   DIR/resume.json            which point, of what, what each disk would be
 *   DIR/DISK/POINT.qcow2.part  what was copied is what it has allocated
 *
 * The image is flushed now and then while it is made.  A flush writes the data
 * before the tables that say it is there.  So whatever ends a run, what the
 * tables have is copied, and the rest is not known.
 *
 * Whether the source is what it was then is the caller's question: `what` is
 * kept for that.
 */
#include <jansson.h>

#include "store/name.h"

struct error;
struct store;

/* @what, an object, describes what the parts of @point will be; NULL: nothing
 * can go on with it, but the source may have something of that name.
 * Durable. */
int resume_put(struct store *s, const char *point, const json_t *what,
               struct error **errp);

/*
 * Is there one?  *what: a new reference, or NULL: none, or it makes no sense,
 * or nothing can go on with it: then @point has a name, else it is "". From
 * then on store_clean leaves its parts.  The point may be the pending one,
 * whose disks are whole.
 */
void resume_get(struct store *s, char point[POINT_NAME_MAX], json_t **what);

/* Forget it: the next store_clean takes its parts. */
int resume_drop(struct store *s, struct error **errp);

#endif /* NBDELTA_SERVER_STORE_RESUME_H */
