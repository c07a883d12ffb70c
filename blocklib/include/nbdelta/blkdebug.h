/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_BLKDEBUG_H
#define NBDELTA_BLKDEBUG_H

/*
 * Holding up requests, for tests
 * ==============================
 *
 * Each function looks for the first blkdebug node at @top or below it, along
 * file children (for a filter: the node that it filters).  A breakpoint holds
 * up the next request that raises @event, once; the tag names the breakpoint
 * and then the request.  A request that is held up goes on when it is resumed,
 * and also when its tree is about to be drained or its node closed.  So nothing
 * waits for it for ever.
 *
 * Rule out that @top is closed meanwhile, and call these from outside of
 * requests and control sections.  -ENOTSUP: there is no blkdebug node.
 */
#include "nbdelta/types.h"

/* -ENOENT: there is no such event. */
int blkdebug_break(struct node *top, const char *event, const char *tag,
                   struct error **errp);

/* Remove breakpoints and resume requests of this tag; -ENOENT: there are
 * none. */
int blkdebug_remove_break(struct node *top, const char *tag,
                          struct error **errp);

/* Resume the request of this tag that was held up last; -ENOENT: there is
 * none. */
int blkdebug_resume(struct node *top, const char *tag, struct error **errp);

/* Is a request of this tag held up? */
bool blkdebug_is_suspended(struct node *top, const char *tag);

/* Wait until a request of this tag is held up, at most @ms milliseconds, or
 * until the tree is about to be drained.  True: a request is held up. */
bool blkdebug_wait_break(struct node *top, const char *tag, uint64_t ms);

#endif /* NBDELTA_BLKDEBUG_H */
