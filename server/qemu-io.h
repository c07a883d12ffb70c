/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_QEMU_IO_H
#define NBDELTA_SERVER_QEMU_IO_H

/* Commands of qemu-io, as a monitor of QEMU takes them: what a guest does to
 * its disk, for tests. */
struct graph;
struct io_tasks;
struct node;

struct io_tasks *io_tasks_new(void); /* NULL: no memory */

/* Wait for requests in flight, then free; NULL is fine. */
void io_tasks_free(struct io_tasks *t);

/*
 * Do @command on @n, as qemu-io prints it on standard output; errors, too.
 * Blocks for the time of the I/O; commands with aio_ go on alone.
 */
void io_command(struct io_tasks *t, struct graph *g, struct node *n,
                const char *command);

#endif /* NBDELTA_SERVER_QEMU_IO_H */
