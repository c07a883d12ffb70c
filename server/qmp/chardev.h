/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_QMP_CHARDEV_H
#define NBDELTA_SERVER_QMP_CHARDEV_H

/*
 * Character devices: where a monitor's bytes come from and go to
 * ==============================================================
 *
 *   listening   socket,server=on: any number of clients
 *   connecting  socket: one connection, made at once; with reconnect=N again
 *               N seconds after it was lost, or could not be made
 *   given       socket,fd=, stdio, file, null: what is there
 *
 * The set is used by one thread until the monitors start; then each device is
 * its monitor's.
 */
#include <stdbool.h>

struct chardev;
struct chardevs;
struct error;
struct listeners;
struct objects;
struct tls;

/* The two directions; they may be one descriptor.  in < 0: no input comes. */
struct channel {
    int in;
    int out;
    struct tls *tls;   /* over both, its handshake not begun; or NULL */
    const char *authz; /* who may be at the other end: its device's, or NULL */
};

/* TLS credentials are looked for in @objects. */
struct chardevs *chardevs_new(const struct objects *objects);
/* Sockets that listen are closed, and their files removed.  NULL is fine. */
void chardevs_free(struct chardevs *s);

/*
 * Make one from the text of an option: "socket,id=a,path=b,server=on".
 * With wait=on (which is what server=on means) this waits for the first
 * client; -EINTR when @stop_fd can be read meanwhile.  @has_stdio: standard
 * input and output are ours to use.
 */
int chardevs_add(struct chardevs *s, const char *text, int stop_fd,
                 bool has_stdio, struct error **errp);

/* A Unix socket to listen on, without an id. */
int chardevs_listen(struct chardevs *s, const char *path, struct chardev **cp,
                    struct error **errp);

/* For its only user.  -ENOENT, -EBUSY: it has one. */
int chardevs_claim(struct chardevs *s, const char *id, struct chardev **cp,
                   struct error **errp);

/* What it listens on; NULL: it does not. */
struct listeners *chardev_listeners(struct chardev *c);

/* The channel over @fd, a connection of this device.  False: no memory, and @fd
 * is closed. */
bool chardev_accept(struct chardev *c, int fd, struct channel *ch);

/* The connection that is there, to be closed by the caller; false: none. */
bool chardev_take(struct chardev *c, struct channel *ch);

/* Seconds after which a lost connection is made again; 0: it is not. */
unsigned chardev_reconnect(const struct chardev *c);

/* Make it again, for chardev_take.  Waits, for some seconds at most. */
int chardev_connect(struct chardev *c, struct error **errp);

#endif /* NBDELTA_SERVER_QMP_CHARDEV_H */
