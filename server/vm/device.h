/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_VM_DEVICE_H
#define NBDELTA_SERVER_VM_DEVICE_H

/*
 * Block backends: disks by the name that a guest's device would have.  Only
 * --vm-compat has them, which stands in for an emulator without a guest.  Hold
 * the monitor lock for all functions except devices_free().
 */
#include <jansson.h>
#include <stdbool.h>

struct blk;
struct daemon;
struct devices;
struct error;
struct node;

struct devices *devices_new(void);    /* NULL: no memory */
void devices_free(struct devices *d); /* NULL is fine */

/* Open a disk as QEMU's -drive says: id=, file=, format=, if=, node-name=,
 * cache=, read-only=, and options of its nodes in dotted keys.  -EINVAL,
 * -EEXIST, or what graph_open says. */
int devices_add_drive(struct daemon *d, const char *text, struct error **errp);

/* Close a drive and its node.  -ENODEV: there is no such drive; -EBUSY:
 * something else uses the node.  An error changes nothing. */
int devices_delete_drive(struct daemon *d, const char *id, struct error **errp);

/*
 * A device @id on the drive or node @drive (NULL: without a disk): a drive has
 * another name then; there is no hardware.  -ENODEV: no such drive, -EEXIST:
 * the id is taken.  In the words of -device: DRIVER,id=,drive=.
 * unplug: its drive goes as well, unless it is just a node, and jobs on that
 * are cancelled; nodes live while others use them.  -ENODEV: no such device.
 */
int devices_plug(struct daemon *d, const char *id, const char *drive,
                 struct error **errp);
int devices_add_device(struct daemon *d, const char *text, struct error **errp);
int devices_unplug(struct daemon *d, const char *id, struct error **errp);

/* Take the disk out of a backend: exports of it end, its nodes are closed.
 * -ENODEV: there is no such backend; -EBUSY: something else uses the disk.  An
 * error changes nothing. */
int devices_eject(struct daemon *d, const char *name, struct error **errp);

/* Give a backend another disk; the old one stays open.  -ENODEV: there is no
 * such backend. */
int devices_set_disk(struct daemon *d, const char *name, struct node *n,
                     struct error **errp);

/* What names of devices begin with in QEMU's tree of objects. */
#define QDEV_PATH "/machine/peripheral/"

/* The disk of the backend or device @name; NULL: there is no such, or it has no
 * disk.  The disk's node changes when another is inserted above it. */
struct blk *devices_find(const struct devices *d, const char *name);

/* Is there such a backend or device, with a disk or without? */
bool devices_has(const struct devices *d, const char *name);

/* Visit their names, oldest first; as exports_each.  @id is "" of a device on
 * a node. */
int devices_each(const struct devices *d,
                 int (*fn)(const char *id, struct blk *b, const char *qdev,
                           void *opaque),
                 void *opaque);

#endif /* NBDELTA_SERVER_VM_DEVICE_H */
