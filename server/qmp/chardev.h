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
 *   given       socket,fd=, stdio, file, null: a descriptor that is there
 *
 * One thread uses the set until the monitors start.  From then on each device
 * belongs to its monitor.
 */
#include <jansson.h>
#include <stdbool.h>

#include "args.h"

struct chardev;
struct chardevs;
struct error;
struct socket_access;
struct listeners;
struct objects;
struct tls;

/* The two directions; they may be one descriptor.  in < 0: no input comes. */
struct channel {
    int in;
    int out;
    struct tls *tls;   /* over both, its handshake not begun; or NULL */
    const char *authz; /* authorization of the other end, or NULL; the string
                          is the device's */
};

/* The options of --chardev: the backend, the id, those of each backend. */
extern const struct qmp_arg chardev_args[];

/* An empty set, which finds TLS credentials in @objects.  NULL: no memory. */
struct chardevs *chardevs_new(const struct objects *objects);
/* Close sockets that listen, remove their files, free all.  NULL is fine. */
void chardevs_free(struct chardevs *s);

/*
 * Make a device from the text of an option: "socket,id=a,path=b,server=on".
 * With wait=on, which is the default of a server, this waits for the first
 * client.  -EINTR: @stop_fd could be read meanwhile.  @has_stdio: the device
 * may use standard input and output.
 */
int chardevs_add(struct chardevs *s, const char *text, int stop_fd,
                 bool has_stdio, struct error **errp);

/* Make a device that listens on a checked address (net/address.h), without an
 * id, for one user.  @access is for address_listen(). */
int chardevs_listen(struct chardevs *s, const json_t *addr,
                    const struct socket_access *access, struct chardev **cp,
                    struct error **errp);

/* Take the device @id for its only user.  -ENOENT; -EBUSY: it has a user. */
int chardevs_claim(struct chardevs *s, const char *id, struct chardev **cp,
                   struct error **errp);

/* The authorization of all other ends of @c, or NULL; the device's string. */
const char *chardev_authz(const struct chardev *c);

/* The sockets that @c listens on; NULL: it does not listen. */
struct listeners *chardev_listeners(struct chardev *c);

/* Make the channel over @fd, which is a connection of @c.  False: no memory,
 * and @fd is closed. */
bool chardev_accept(struct chardev *c, int fd, struct channel *ch);

/* Take the connection of @c, to be closed by the caller.  False: there is none.
 */
bool chardev_take(struct chardev *c, struct channel *ch);

/* Seconds after which a lost connection is made again; 0: it is not. */
unsigned chardev_reconnect(const struct chardev *c);

/* Make the connection again, for chardev_take().  Waits, for some seconds for
 * each address. */
int chardev_connect(struct chardev *c, struct error **errp);

#endif /* NBDELTA_SERVER_QMP_CHARDEV_H */
