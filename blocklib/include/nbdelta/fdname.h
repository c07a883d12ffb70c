/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_FDNAME_H
#define NBDELTA_FDNAME_H

/*
 * Descriptors by a name or a number
 * =================================
 *
 * Addresses of the type "fd" name a descriptor.  On a command line that is the
 * number of one that the process has inherited.  A client of a monitor passes
 * descriptors, and gives them names; commands that it sends mean these.
 *
 * The names belong to a thread, which runs the client's commands.  Another
 * thread has none, and knows numbers only.
 */
#include "nbdelta/types.h"

struct fd_names;

/* Names that one client may have at a time. */
#define FD_NAMES_MAX 64

struct fd_names *fd_names_new(void);    /* NULL: no memory */
void fd_names_free(struct fd_names *n); /* closes what is left; NULL is fine */

/* The calling thread means @n from now on; NULL: numbers. */
void fd_names_use(struct fd_names *n);

/* Give @fd, which belongs to @n from then on, a name.  What had the name is
 * closed.  -EINVAL: the name begins with a digit.  -EMFILE: FD_NAMES_MAX.  An
 * error leaves @fd to the caller. */
int fd_names_set(struct fd_names *n, const char *name, int fd,
                 struct error **errp);

/* Close the descriptor @name.  -ENOENT: there is none. */
int fd_names_close(struct fd_names *n, const char *name, struct error **errp);

/*
 * A descriptor of the socket that @text means to this thread, to be closed by
 * the caller.  A name is used up: it goes at fd_names_settle(), so that a
 * command may ask for it more than once.  A number is an inherited descriptor;
 * the caller is its owner from now on or, with @keep, gets a duplicate.
 * -ENOENT, -EINVAL: there is none, or it is no socket.
 */
int fd_named_socket(const char *text, bool keep, struct error **errp);

/* A command has ended: close what it has used up. */
void fd_names_settle(struct fd_names *n);

#endif /* NBDELTA_FDNAME_H */
