/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_SOURCE_TALK_H
#define NBDELTA_SERVER_SOURCE_TALK_H

/* A conversation with a monitor, of QEMU or of our own daemon.  A connection
 * that is lost is made anew for the next command. */
#include <jansson.h>
#include <stdbool.h>
#include <sys/types.h>

struct error;
struct source_options;
struct talk;

/* Is @what the path of a Unix socket, or "qmp://..."? */
bool talk_is_monitor(const char *what);

/* Connect.  -EBUSY: nobody greets within 5 s.  @o is not kept, except its
 * graph. */
int talk_open(const char *what, const struct source_options *o,
              struct talk **tp, struct error **errp);
void talk_close(struct talk *t); /* NULL is fine */

/* Is it our daemon, not QEMU? */
bool talk_is_nbdelta(const struct talk *t);

/* "QEMU 7.2.22", "nbdelta 0.1.0"; lives as long as @t. */
const char *talk_version(const struct talk *t);

/* The host of qmp://HOST:PORT; NULL: a Unix socket. */
const char *talk_host(const struct talk *t);

/* The process that answers on the Unix socket, and the user that it runs as
 * now: it may have changed that since.  -ENOTSUP: none. */
int talk_peer(const struct talk *t, pid_t *pid, uid_t *uid);

/*
 * Send @command with @args (a reference that is given away; NULL: none) and
 * wait for what it returns: a new reference in *ret, if @ret is not NULL.
 * -EREMOTEIO: the other side refuses, with its words; talk_refused() tells its
 * class.  Other errors are of the connection: whether the command was carried
 * out is not known.
 */
int talk_ask(struct talk *t, const char *command, json_t *args, json_t **ret,
             struct error **errp);

/* Was the last answer an error of this class, or one whose text has @part?
 * Either may be NULL. */
bool talk_refused(const struct talk *t, const char *class, const char *part);

/* -ECANCELED, with a text, once stop_fd is readable. */
int talk_check_stop(const struct talk *t, struct error **errp);

/* What follows undoes something: it has its time although the user wants an
 * end.  After a connection that could not be made again, all commands fail at
 * once, until this is called again. */
void talk_undo(struct talk *t);

/* What follows is something new. */
void talk_resume(struct talk *t);

#endif /* NBDELTA_SERVER_SOURCE_TALK_H */
