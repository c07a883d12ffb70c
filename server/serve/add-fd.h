/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_SERVE_ADD_FD_H
#define NBDELTA_SERVER_SERVE_ADD_FD_H

struct error;
struct graph;

/* --add-fd fd=FD,set=N[,opaque=TEXT]: put a descriptor that the process has
 * inherited into a set, as QEMU's -add-fd does. */
int add_fd_option(struct graph *g, const char *text, struct error **errp);

#endif /* NBDELTA_SERVER_SERVE_ADD_FD_H */
