/* SPDX-License-Identifier: BSD-3-Clause */
/* Character devices, from the option to the open channel: see chardev.h. */
#include "qmp/chardev.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "keyval.h"
#include "log/log.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/list.h"
#include "net/address.h"
#include "net/tls-policy.h"
#include "net/tls.h"
#include "objects/object.h"
#include "qmp/dispatch.h"

struct chardev {
    struct list in_set;
    char *id; /* NULL: it has none */
    bool claimed;
    bool listening;
    struct listeners listeners;
    unsigned reconnect;
    json_t *address;        /* to connect to again, or NULL */
    struct tls_policy *tls; /* or NULL */
    struct channel channel; /* out < 0: there is no connection */
};

struct chardevs {
    const struct objects *objects;
    struct list list;
};

static const struct channel no_channel = {.in = -1, .out = -1};

struct chardevs *chardevs_new(const struct objects *objects)
{
    struct chardevs *s = calloc(1, sizeof(*s));

    if (s) {
        s->objects = objects;
        list_init(&s->list);
    }
    return s;
}

static struct chardev *chardev_new(const char *id)
{
    struct chardev *c = calloc(1, sizeof(*c));

    if (c) {
        c->channel = no_channel;
        c->id = id ? strdup(id) : NULL;
        list_init(&c->in_set);
    }
    if (c && id && !c->id) {
        free(c);
        return NULL;
    }
    return c;
}

static void close_channel(struct channel *ch)
{
    tls_free(ch->tls);
    if (ch->in >= 0 && ch->in != ch->out) {
        (void)close(ch->in);
    }
    if (ch->out >= 0) {
        (void)close(ch->out);
    }
    *ch = no_channel;
}

static void chardev_free(struct chardev *c)
{
    list_remove(&c->in_set);
    listeners_close(&c->listeners);
    close_channel(&c->channel);
    json_decref(c->address);
    tls_policy_unref(c->tls);
    free(c->id);
    free(c);
}

void chardevs_free(struct chardevs *s)
{
    if (s) {
        list_for_each_safe (l, &s->list) {
            chardev_free(list_entry(l, struct chardev, in_set));
        }
        free(s);
    }
}

static struct chardev *find_chardev(struct chardevs *s, const char *id)
{
    list_for_each (l, &s->list) {
        struct chardev *c = list_entry(l, struct chardev, in_set);

        if (c->id && strcmp(c->id, id) == 0) {
            return c;
        }
    }
    return NULL;
}

/* --- Options. --- */

static const char *const backends[] = {"file", "null", "socket", "stdio", NULL};

static const struct qmp_arg file_args[] = {
    QMP_ARG("path", STR),
    QMP_OPT("append", BOOL),
    QMP_LAST,
};

static const struct qmp_arg stdio_args[] = {
    QMP_OPT("signal", BOOL),
    QMP_LAST,
};

static const struct qmp_arg socket_args[] = {
    QMP_OPT("path", STR),         QMP_OPT("host", STR),
    QMP_OPT("port", STR),         QMP_OPT("fd", STR),
    QMP_OPT("server", BOOL),      QMP_OPT("wait", BOOL),
    QMP_OPT("nodelay", BOOL),     QMP_OPT("ipv4", BOOL),
    QMP_OPT("ipv6", BOOL),        QMP_OPT("to", UINT32),
    QMP_OPT("reconnect", UINT32), QMP_OPT("tls-creds", STR),
    QMP_OPT("tls-authz", STR),    QMP_LAST,
};

static const struct qmp_variant variants[] = {
    {"file", file_args},   {"null", NULL}, {"socket", socket_args},
    {"stdio", stdio_args}, {NULL, NULL},
};

const struct qmp_arg chardev_args[] = {
    QMP_ARG("backend", ENUM, .words = backends),
    QMP_ARG("id", STR),
    QMP_VARIANTS("backend", variants),
};

static bool flag_or(const json_t *o, const char *key, bool fallback)
{
    const json_t *v = json_object_get(o, key);

    return v ? json_is_true(v) : fallback;
}

/* The address among the options of a socket; a new reference. */
static json_t *address_of_socket(const json_t *o, struct error **errp)
{
    static const char *const keys[] = {"host", "port", "ipv4", "ipv6", "to"};
    json_t *path = json_object_get(o, "path");
    json_t *host = json_object_get(o, "host");
    json_t *port = json_object_get(o, "port");
    json_t *fd = json_object_get(o, "fd");
    json_t *addr = NULL;

    if ((path != NULL) + (fd != NULL) + (host || port) != 1) {
        (void)error_set(errp, EINVAL,
                        "chardev: socket: give one of 'path', 'fd', and "
                        "'host' with 'port'");
        return NULL;
    }
    if (path) {
        addr = json_pack("{s:s, s:O}", "type", "unix", "path", path);
    } else if (fd) {
        addr = json_pack("{s:s, s:O}", "type", "fd", "str", fd);
    } else if (!port) {
        (void)error_set(errp, EINVAL, "chardev: socket: no port given");
        return NULL;
    } else {
        addr = json_pack("{s:s, s:s}", "type", "inet", "host", "");
        for (size_t i = 0; addr && i < sizeof(keys) / sizeof(keys[0]); i++) {
            json_t *v = json_object_get(o, keys[i]);

            if (v && json_object_set(addr, keys[i], v) < 0) {
                json_decref(addr);
                addr = NULL;
            }
        }
    }
    if (!addr) {
        (void)error_nomem(errp);
    }
    return addr;
}

static int wait_for_client(struct chardev *c, int stop_fd, struct error **errp)
{
    struct pollfd fds[LISTENERS_MAX + 1] = {{.fd = stop_fd, .events = POLLIN}};

    for (unsigned i = 0; i < c->listeners.count; i++) {
        fds[i + 1] = (struct pollfd){.fd = c->listeners.at[i].fd,
                                     .events = POLLIN};
    }
    log_line(TELL_WARNING, "chardev '%s': waiting for a client", c->id);
    while (poll(fds, c->listeners.count + 1, -1) < 0) {
        if (errno != EINTR) {
            return error_set(errp, errno, "cannot wait for a client: %s",
                             strerror(errno));
        }
    }
    return fds[0].revents
               ? error_set(errp, EINTR, "told to stop before a client came")
               : 0;
}

/* Set c->tls from the options.  As in QEMU, there is TLS only over TCP. */
static int find_tls(const struct objects *objects, struct chardev *c,
                    const json_t *o, bool server, struct error **errp)
{
    const char *id = member_str(o, "tls-creds");
    const char *authz = member_str(o, "tls-authz");
    const char *other = json_object_get(o, "path") ? "unix"
                        : json_object_get(o, "fd") ? "fd"
                                                   : NULL;
    struct tls_keys *keys;

    if (!id) {
        return authz ? error_set(errp, EINVAL,
                                 "'tls_authz' option requires 'tls_creds' "
                                 "option")
                     : 0;
    }
    if (other) {
        return error_set(errp, EINVAL,
                         "'tls_creds' option is incompatible with '%s' "
                         "address type",
                         other);
    }
    int r = objects_tls_keys(objects, id, server, &keys, errp);
    if (r < 0) {
        return r;
    }
    if (authz && (!server || !tls_keys_identify(keys))) {
        r = error_set(errp, EINVAL,
                      "'tls_authz' needs TLS credentials of a server that "
                      "tell who a client is");
    } else if (authz) {
        r = objects_check_authz(objects, authz, errp);
    }
    if (r == 0) {
        c->tls = tls_policy_new(TLS_REQUIRE, keys, authz);
        r = c->tls ? 0 : error_nomem(errp);
    }
    tls_keys_unref(keys);
    return r;
}

static int open_listening(struct chardev *c, const json_t *o,
                          const json_t *addr, int stop_fd, struct error **errp)
{
    int r = address_listen(addr, NULL, &c->listeners, errp);

    c->listening = true;
    return r == 0 && flag_or(o, "wait", true)
               ? wait_for_client(c, stop_fd, errp)
               : r;
}

static int open_socket(struct chardevs *s, struct chardev *c, const json_t *o,
                       int stop_fd, struct error **errp)
{
    CLEANUP_JSON json_t *addr = address_of_socket(o, errp);
    bool server = flag_or(o, "server", false);

    if (!addr) {
        return -EINVAL;
    }
    int r = find_tls(s->objects, c, o, server, errp);
    if (r < 0) {
        return r;
    }
    c->reconnect =
        (unsigned)json_integer_value(json_object_get(o, "reconnect"));
    if (server && c->reconnect > 0) {
        return error_set(errp, EINVAL,
                         "'reconnect' option is incompatible with socket in "
                         "server listen mode");
    }
    if (c->reconnect > 0 && json_object_get(o, "fd")) {
        return error_set(errp, EINVAL,
                         "'reconnect' option is incompatible with 'fd'");
    }
    if (!server && json_object_get(o, "wait")) {
        return error_set(errp, EINVAL,
                         "'wait' option is incompatible with socket in client "
                         "connect mode");
    }
    if (server) {
        return open_listening(c, o, addr, stop_fd, errp);
    }
    c->address = json_incref(addr);
    r = chardev_connect(c, c->reconnect > 0 ? NULL : errp);
    return c->reconnect > 0 ? 0 : r;
}

static int open_stdio(struct chardev *c, bool has_stdio, struct error **errp)
{
    static bool taken;

    if (!has_stdio) {
        return error_set(errp, EINVAL, "cannot use stdio with -daemonize");
    }
    if (taken) {
        return error_set(errp, EBUSY,
                         "cannot use stdio by multiple character devices");
    }
    taken = true;
    c->channel = (struct channel){.in = STDIN_FILENO, .out = STDOUT_FILENO};
    return 0;
}

static int open_file(struct chardev *c, const json_t *o, struct error **errp)
{
    const char *path = member_str(o, "path");
    int how = flag_or(o, "append", false) ? O_APPEND : O_TRUNC;
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC | how, 0666);

    c->channel.out = fd;
    return fd < 0 ? error_set(errp, errno, "Could not open '%s': %s", path,
                              strerror(errno))
                  : 0;
}

static int open_backend(struct chardevs *s, struct chardev *c, const json_t *o,
                        int stop_fd, bool has_stdio, struct error **errp)
{
    const char *backend = member_str(o, "backend");

    if (strcmp(backend, "socket") == 0) {
        return open_socket(s, c, o, stop_fd, errp);
    }
    if (strcmp(backend, "stdio") == 0) {
        return open_stdio(c, has_stdio, errp);
    }
    return strcmp(backend, "file") == 0 ? open_file(c, o, errp) : 0;
}

int chardevs_add(struct chardevs *s, const char *text, int stop_fd,
                 bool has_stdio, struct error **errp)
{
    CLEANUP_JSON json_t *o = NULL;
    CLEANUP_FREE char *full = keyval_spell_out(text, "backend", chardev_args);
    int r = full ? keyval_parse(full, "backend", chardev_args, &o, errp)
                 : error_nomem(errp);

    if (r < 0) {
        return r;
    }
    const char *id = member_str(o, "id");
    if (find_chardev(s, id)) {
        return error_set(errp, EEXIST, "Chardev '%s' already exists", id);
    }
    struct chardev *c = chardev_new(id);
    if (!c) {
        return error_nomem(errp);
    }
    r = open_backend(s, c, o, stop_fd, has_stdio, errp);
    if (r < 0) {
        chardev_free(c);
        return r;
    }
    list_append(&s->list, &c->in_set);
    return 0;
}

int chardevs_listen(struct chardevs *s, const json_t *addr,
                    const struct socket_access *access, struct chardev **cp,
                    struct error **errp)
{
    struct chardev *c = chardev_new(NULL);

    if (!c) {
        return error_nomem(errp);
    }
    int r = address_listen(addr, access, &c->listeners, errp);
    if (r < 0) {
        chardev_free(c);
        return r;
    }
    c->listening = true;
    c->claimed = true;
    list_append(&s->list, &c->in_set);
    *cp = c;
    return 0;
}

/* --- Use. --- */

int chardevs_claim(struct chardevs *s, const char *id, struct chardev **cp,
                   struct error **errp)
{
    struct chardev *c = find_chardev(s, id);

    if (!c) {
        return error_set(errp, ENOENT, "chardev \"%s\" not found", id);
    }
    if (c->claimed) {
        return error_set(errp, EBUSY, "Device '%s' is in use", id);
    }
    c->claimed = true;
    *cp = c;
    return 0;
}

const char *chardev_authz(const struct chardev *c)
{
    return c->tls ? c->tls->authz : NULL;
}

struct listeners *chardev_listeners(struct chardev *c)
{
    return c->listening ? &c->listeners : NULL;
}

bool chardev_take(struct chardev *c, struct channel *ch)
{
    if (c->channel.out < 0) {
        return false;
    }
    *ch = c->channel;
    c->channel = no_channel;
    return true;
}

bool chardev_accept(struct chardev *c, int fd, struct channel *ch)
{
    const char *host = member_str(c->address, "host");

    *ch = (struct channel){.in = fd, .out = fd};
    if (c->tls) {
        ch->authz = c->tls->authz;
        ch->tls = tls_new(c->tls->keys, fd, host && *host ? host : NULL);
    }
    if (c->tls && !ch->tls) {
        close_channel(ch);
        return false;
    }
    return true;
}

unsigned chardev_reconnect(const struct chardev *c)
{
    return c->reconnect;
}

int chardev_connect(struct chardev *c, struct error **errp)
{
    int fd = -1;
    int r = address_connect(c->address, &fd, errp);

    return r == 0 && !chardev_accept(c, fd, &c->channel) ? error_nomem(errp)
                                                         : r;
}
