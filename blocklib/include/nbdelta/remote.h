/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_REMOTE_H
#define NBDELTA_REMOTE_H

/* What libnbd says, for people. */

struct error;

/*
 * The error @code (0: -EIO) with libnbd's text @why (NULL: none), without the
 * names of its functions.  When one side wants TLS and the other one has none,
 * the text says so, and what to do.  Returns -errno.
 */
int remote_error(int code, const char *why, struct error **errp);

/* The server refuses everything without TLS. */
int remote_demands_tls(struct error **errp);

#endif /* NBDELTA_REMOTE_H */
