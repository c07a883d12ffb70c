/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_JOB_FAR_BITS_H
#define NBDELTA_JOB_FAR_BITS_H

/* The bits of a bitmap that another NBD server has, as it tells of them. */
#include <stdatomic.h>

#include "core/hbitmap.h"
#include "core/node.h"

struct error;

/* The node of driver nbd that shows what @n shows, byte by byte: @n, or what is
 * below it.  NULL: there is none.  Control lock. */
struct node *far_export(struct node *n);

/*
 * Add to @bits what the bitmap @name of the export of @n (of far_export, with a
 * reference of the caller) has dirty.  Makes a connection of its own, so the
 * server tells of bitmaps that it has now.  Each range is asked for once, at
 * some time during the call.  What @bits has behind the end of the export, less
 * than a sector, is dirty.
 *
 * Not in a control section; blocks.  Ends some seconds after @stop is set, with
 * -ECANCELED.  -EINVAL: the server offers no such bitmap, or the export has
 * another size; others from connecting and asking.  @bits may have some of the
 * bits then.
 */
int far_bits_add(struct node *n, const char *name, const _Atomic bool *stop,
                 struct hbitmap *bits, struct error **errp);

#endif /* NBDELTA_JOB_FAR_BITS_H */
