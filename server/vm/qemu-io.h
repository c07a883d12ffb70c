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
 * Parse @command, and attach to @n if it needs I/O; attaching lets requests go
 * on that are held up there.  Hold the monitor lock, so that @n stays.  NULL:
 * nothing is left to do; errors are printed on standard output.
 */
struct io_request *io_prepare(struct io_tasks *t, struct jobs *jobs,
                              struct graph *g, struct node *n,
                              const char *command);

/*
 * Do what @q says and free @q.  Results and errors go to standard output, in
 * qemu-io's words.  Do not hold the monitor lock: this blocks for the time of
 * the I/O, which may have to wait for a job.  Commands with aio_ go on alone.
 */
void io_perform(struct io_request *q);

#endif /* NBDELTA_SERVER_VM_QEMU_IO_H */
