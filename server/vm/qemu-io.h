/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_VM_QEMU_IO_H
#define NBDELTA_SERVER_VM_QEMU_IO_H

/* Commands of qemu-io, as a monitor of QEMU takes them: what a guest does to
 * its disk, for tests. */
struct graph;
struct io_request;
struct io_tasks;
struct jobs;
struct node;

struct io_tasks *io_tasks_new(void); /* NULL: no memory */

/* Wait for requests in flight, then free; NULL is fine. */
void io_tasks_free(struct io_tasks *t);

/*
 * Read @command and attach to @n, if it is to do I/O; that lets requests go on
 * that are held up there.  Under the monitor lock, so @n is there.
 * NULL: nothing is left to do; errors are printed on standard output.
 */
struct io_request *io_prepare(struct io_tasks *t, struct jobs *jobs,
                              struct graph *g, struct node *n,
                              const char *command);

/*
 * Do it, as qemu-io prints it on standard output, errors too, and free @q.
 * Without the monitor lock: blocks for the time of the I/O, which may have to
 * wait for a job.  Commands with aio_ go on alone.
 */
void io_perform(struct io_request *q);

#endif /* NBDELTA_SERVER_VM_QEMU_IO_H */
