/* SPDX-License-Identifier: BSD-3-Clause */
/* Descriptors by a name or a number: see fdname.h. */
#include "nbdelta/fdname.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "nbdelta/error.h"
#include "nbdelta/list.h"

struct named {
    struct list in_names;
    char *name;
    int fd;
    bool used;
};

struct fd_names {
    struct list list;
    unsigned count;
};

static _Thread_local struct fd_names *current;

struct fd_names *fd_names_new(void)
{
    struct fd_names *n = calloc(1, sizeof(*n));

    if (n) {
        list_init(&n->list);
    }
    return n;
}

/* Forget @e; returns its descriptor. */
static int take_out(struct fd_names *n, struct named *e)
{
    int fd = e->fd;

    list_remove(&e->in_names);
    n->count--;
    free(e->name);
    free(e);
    return fd;
}

void fd_names_free(struct fd_names *n)
{
    if (n) {
        list_for_each_safe (at, &n->list) {
            (void)close(take_out(n, list_entry(at, struct named, in_names)));
        }
        free(n);
    }
}

void fd_names_use(struct fd_names *n)
{
    current = n;
}

static struct named *find_name(const struct fd_names *n, const char *name)
{
    list_for_each (at, &n->list) {
        struct named *e = list_entry(at, struct named, in_names);

        if (strcmp(e->name, name) == 0) {
            return e;
        }
    }
    return NULL;
}

int fd_names_set(struct fd_names *n, const char *name, int fd,
                 struct error **errp)
{
    struct named *e = find_name(n, name);

    if (isdigit((unsigned char)name[0])) {
        return error_set(errp, EINVAL,
                         "Parameter 'fdname' expects a name not starting with "
                         "a digit");
    }
    if (e) {
        (void)close(e->fd);
        e->fd = fd;
        e->used = false;
        return 0;
    }
    if (n->count == FD_NAMES_MAX) {
        return error_set(errp, EMFILE,
                         "this client has %d descriptors with names already",
                         FD_NAMES_MAX);
    }
    e = calloc(1, sizeof(*e));
    if (!e || !(e->name = strdup(name))) {
        free(e);
        return error_nomem(errp);
    }
    e->fd = fd;
    list_append(&n->list, &e->in_names);
    n->count++;
    return 0;
}

int fd_names_close(struct fd_names *n, const char *name, struct error **errp)
{
    struct named *e = find_name(n, name);

    if (!e) {
        return error_set(errp, ENOENT,
                         "File descriptor named '%.200s' not found", name);
    }
    (void)close(take_out(n, e));
    return 0;
}

static bool is_socket(int fd)
{
    int type = 0;
    socklen_t len = sizeof(type);

    return getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &len) == 0;
}

static int duplicate(int of, const char *text, struct error **errp)
{
    int fd = fcntl(of, F_DUPFD_CLOEXEC, 3);

    return fd < 0 ? error_set(errp, errno, "descriptor '%.200s': %s", text,
                              strerror(errno))
                  : fd;
}

static int of_name(struct fd_names *n, const char *text, struct error **errp)
{
    struct named *e = find_name(n, text);

    if (!e) {
        return error_set(errp, ENOENT,
                         "File descriptor named '%.200s' has not been found",
                         text);
    }
    e->used = true;
    return e->fd;
}

static int of_number(const char *text, struct error **errp)
{
    char *end;
    long n = strtol(text, &end, 10);

    if (!isdigit((unsigned char)text[0]) || *end || n > INT32_MAX) {
        return error_set(errp, EINVAL,
                         "'%.200s' is not the number of a descriptor", text);
    }
    return (int)n;
}

int fd_named_socket(const char *text, bool keep, struct error **errp)
{
    int fd = current ? of_name(current, text, errp) : of_number(text, errp);

    if (fd < 0) {
        return fd;
    }
    if (!is_socket(fd)) {
        return error_set(errp, EINVAL,
                         "File descriptor '%.200s' is not a socket", text);
    }
    return current || keep ? duplicate(fd, text, errp) : fd;
}

void fd_names_settle(struct fd_names *n)
{
    list_for_each_safe (at, &n->list) {
        struct named *e = list_entry(at, struct named, in_names);

        if (e->used) {
            (void)close(take_out(n, e));
        }
    }
}
