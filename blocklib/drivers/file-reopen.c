/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Opening a file again with other flags.
 *
 * Its descriptor is replaced by another one of the same inode, by way of the
 * old one: the name may lead elsewhere by now.  The old one stays open, with
 * its lock, until it is certain that the new one stays.  So no other process
 * can get in between.
 *
 * The file of a node that becomes active is locked first, and then has the size
 * that others have left it with.  That of a node that becomes inactive loses
 * its locks last.
 */
#include "drivers/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/door.h"
#include "core/fdset.h"
#include "core/imagelock.h"
#include "nbdelta/error.h"

struct file_before {
    int fd;                /* or -1: it is not replaced */
    struct fdset_use *use; /* of fd */
    uint32_t align;
    uint32_t zero_align;
    uint64_t size;
    bool widened; /* the lock of fd, for the new one's sake */
    bool woken;   /* it had no lock worth the name */
};

/* *use: what a descriptor of a set is of, or NULL. */
static int open_again(struct node *n, const struct node_flags *to,
                      struct fdset_use **use, struct error **errp)
{
    const struct file *s = n->state;
    int flags = (to->read_only ? O_RDONLY : O_RDWR) |
                (to->direct ? O_DIRECT : 0);
    struct door d = {s->fd, AT_FDCWD, n->filename, {0}};

    if (n->only_read && !to->read_only) {
        return error_set(errp, EPERM,
                         "'%s' is only read: an image names it (--follow=data "
                         "allows more)",
                         node_filename(n));
    }
    *use = NULL;
    int fd = s->use ? fdset_dup(n->graph, n->filename, flags, use, errp)
             : fstat(s->fd, &d.st) < 0 ? -errno
                                       : door_open(&d, flags);
    if (fd < 0 && s->use) {
        return fd;
    }
    if (fd < 0) {
        return error_set(errp, -fd, "Could not open '%s': %s", node_filename(n),
                         strerror(-fd));
    }
    int r = to->read_only ? 0 : file_check_writable(fd, node_filename(n), errp);
    if (r < 0) {
        file_close_fd(n, fd, *use);
        return r;
    }
    return fd;
}

static int lock_again(struct node *n, const struct node_flags *to,
                      struct file_before *before, int fd, struct error **errp)
{
    const struct file *s = n->state;
    int r = 0;

    if (!s->locked) {
        return 0;
    }
    if (n->flags.read_only && !to->read_only && !before->woken) {
        r = image_lock_widen(s->fd, node_filename(n), errp);
        before->widened = r == 0;
    }
    if (r == 0) {
        r = image_lock_again(fd, !to->read_only);
        if (r < 0) {
            r = error_set(errp, -r, "cannot lock the image '%s': %s",
                          node_filename(n), strerror(-r));
        }
    }
    return r;
}

/* O_DIRECT belongs to the open file, which both may be of. */
static void restore_direct(const struct node *n)
{
    const struct file *s = n->state;
    int has = s->use ? fcntl(s->fd, F_GETFL) : -1;

    if (has >= 0) {
        (void)fcntl(s->fd, F_SETFL,
                    (has & ~O_DIRECT) | (n->flags.direct ? O_DIRECT : 0));
    }
}

/* Close what was opened, and have the old one again. */
static void take_back(struct node *n, struct file_before *before)
{
    struct file *s = n->state;

    if (before->fd >= 0) {
        file_close_fd(n, s->fd, s->use);
        s->fd = before->fd;
        s->use = before->use;
        restore_direct(n);
        s->align = before->align;
        s->zero_align = before->zero_align;
    }
    if (before->woken) {
        n->size = before->size;
        image_lock_idle(s->fd);
    } else if (before->widened) {
        image_lock_narrow(s->fd);
    }
    free(before);
}

/* Have the new descriptor in place of the old one. */
static int replace(struct node *n, const struct node_flags *to,
                   struct file_before *before, struct error **errp)
{
    struct file *s = n->state;
    struct fdset_use *use;
    int fd = open_again(n, to, &use, errp);

    if (fd < 0) {
        return fd;
    }
    int r = lock_again(n, to, before, fd, errp);
    for (size_t i = 0; i < s->mark_count; i++) {
        (void)image_mark(fd, s->marks[i]);
    }
    file_uncached_close(s);
    file_sync_close(s);
    file_grow_end(n);
    before->fd = s->fd;
    s->fd = fd;
    s->use = use;
    return r < 0 ? r
                 : file_find_alignment(s, to->direct, node_filename(n), errp);
}

/* Take the locks of an active node, and look what the file is like now. */
static int wake(struct node *n, const struct node_flags *to,
                struct file_before *before, struct error **errp)
{
    const struct file *s = n->state;

    before->woken = s->locked;
    int r = s->locked
                ? image_lock(s->fd, node_filename(n), !to->read_only, errp)
                : 0;
    return r < 0 ? r : file_find_size(n, node_filename(n), errp);
}

static int change(struct node *n, const struct node_flags *to,
                  struct file_before *before, struct error **errp)
{
    bool same = to->read_only == n->flags.read_only &&
                to->direct == n->flags.direct;
    bool wakes = n->flags.inactive && !to->inactive;
    int r = wakes ? wake(n, to, before, errp) : 0;

    file_count_change(n->state); /* others may have changed it, or will */
    return r < 0 || same ? r : replace(n, to, before, errp);
}

int file_reopen(struct node *n, const struct node_flags *to,
                struct error **errp)
{
    struct file *s = n->state;
    /* Flush first: the kernel tells an error of writing back only to
     * descriptors that were open. */
    int r = n->flags.read_only ? 0 : file_flush(n);

    if (r < 0) {
        return error_set(errp, -r, "cannot flush '%s': %s", node_filename(n),
                         strerror(-r));
    }
    if (to->read_only == n->flags.read_only && to->direct == n->flags.direct &&
        to->inactive == n->flags.inactive) {
        return 0;
    }
    struct file_before *before = calloc(1, sizeof(*before));
    if (!before) {
        return error_nomem(errp);
    }
    *before = (struct file_before){
        .fd = -1,
        .use = s->use,
        .align = s->align,
        .zero_align = s->zero_align,
        .size = n->size,
    };
    r = change(n, to, before, errp);
    if (r < 0) {
        take_back(n, before);
        return r;
    }
    s->before = before;
    return 0;
}

void file_reopen_commit(struct node *n)
{
    struct file *s = n->state;

    if (!s->before) {
        return;
    }
    if (s->before->fd >= 0) {
        file_close_fd(n, s->before->fd, s->before->use);
        file_advise(n);
        file_grow_begin(n, n->size);
    }
    if (s->locked && n->flags.inactive) {
        image_lock_idle(s->fd);
    }
    free(s->before);
    s->before = NULL;
}

void file_reopen_abort(struct node *n)
{
    struct file *s = n->state;

    if (s->before) {
        take_back(n, s->before);
        s->before = NULL;
        file_grow_begin(n, n->size);
    }
}
