/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_VM_QEMU_IO_H
#define NBDELTA_SERVER_VM_QEMU_IO_H

/* Commands of qemu-io, as a monitor of QEMU takes them: what a guest does to
 * its disk, for tests. */
struct blk;
struct error;
struct graph;
struct io_request;
struct io_tasks;
struct jobs;
struct node;

struct io_tasks *io_tasks_new(void); /* NULL: no memory */

/* Wait for requests in flight, then free; NULL is fine. */
void io_tasks_free(struct io_tasks *t);

struct io_context {
    struct io_tasks *tasks;
    struct jobs *jobs;
    struct graph *graph;
};

/*
 * Parse @command, and attach to @n if it needs I/O, with the limits of @device
 * (or NULL); attaching lets requests go on that are held up there.  Hold the
 * monitor lock, so that @n stays.  *qp NULL: nothing is left to do; what the
 * command says is printed on standard output.  An error says why it cannot
 * attach.
 */
int io_prepare(const struct io_context *c, struct node *n, struct blk *device,
               const char *command, struct io_request **qp,
               struct error **errp);

/*
 * Do what @q says and free @q.  Results and errors go to standard output, in
 * qemu-io's words.  Do not hold the monitor lock: this blocks for the time of
 * the I/O, which may have to wait for a job.  Commands with aio_ go on alone.
 */
void io_perform(struct io_request *q);

#endif /* NBDELTA_SERVER_VM_QEMU_IO_H */
