/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_IMAGE_H
#define NBDELTA_IMAGE_H

/* Creating images, checking and repairing them. */
#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "nbdelta/types.h"

/* --- drivers/table.c, core/create.c --- */

/*
 * Create an image file of @format ("qcow2" or "raw") at @filename.  A file that
 * is there is replaced, unless a process holds a lock on it.  Blocks.
 *
 * @options: an object of creation options as qemu-img's -o takes them, values
 * as strings, booleans or numbers: size, backing_file, backing_fmt, compat,
 * cluster_size, refcount_bits, lazy_refcounts, compression_type,
 * preallocation, data_file, data_file_raw, extended_l2, and an object "encrypt"
 * of format ("luks"), key-secret, cipher-alg, cipher-mode, ivgen-alg,
 * ivgen-hash-alg, hash-alg, iter-time (milliseconds); for raw, size and
 * preallocation.
 * Without "size", the image has the size of the backing file.  A relative
 * backing_file is relative to @filename's directory, and is opened to check it,
 * unless "backing_unchecked" is true.  data_file is created, too, or emptied;
 * its name is stored as it is given, and is relative to the directory where we
 * run, as in QEMU.
 *
 * -EINVAL names the bad option in @errp.  The new file is durable when this
 * returns 0; on failure a file that was created here is removed.
 */
int image_create(const char *filename, const char *format,
                 const json_t *options, struct error **errp);

/* Is there a driver of this name?  NULL is fine.  -EINVAL: no; the text names
 * the formats that images have. */
int image_check_format(const char *format, struct error **errp);

/* The same, with the secrets of @g (nbdelta/secret.h), which "encrypt" names.
 */
int image_create_with(struct graph *g, const char *filename, const char *format,
                      const json_t *options, struct error **errp);

/* Remove an image that image_create() has made.  -ENOENT; -EBUSY: an image of
 * Ceph that somebody has open; others. */
int image_remove(const char *filename, struct error **errp);

/* --- core/create.c --- */

/*
 * Write an empty image of @format ("qcow2") into a node.  @options are as
 * above, with "size"; a backing file is not opened.  @file is the name of a
 * node of @g, or the options to open one for this.  Old data of the node that
 * the new image does not overwrite stay there, and are not seen in the image.
 * Call it without locks.  -EBUSY: a user of the node does not let others write.
 *
 * "data_file" names, in the same ways, the node of an external data file.  That
 * is not emptied, only made as long as the disk.
 *
 * *left gets nodes that stay open, also after a failure.  The caller then calls
 * image_release, which closes them: hold the monitor lock for it, as for
 * graph_close.
 */
struct image_nodes {
    struct node *file;
    struct node *data;
    struct node *image;
};
int image_format(struct graph *g, const char *format, const json_t *file,
                 const json_t *options, struct image_nodes *left,
                 struct error **errp);
void image_release(struct graph *g, struct image_nodes *left);

/* --- qcow2/track.c, by way of drivers/table.c --- */

struct image_track {
    const json_t *options; /* of qcow2: cluster_size, ...; NULL: none */
    const char *bitmap;    /* name of a persistent bitmap to add, or NULL */
    bool force;            /* @raw may look like an image of some format */
};

/*
 * Create a qcow2 image at @filename, where no file is yet, with the file or
 * block device @raw as its raw data file: same disk, same bytes.  @raw is
 * neither written to nor changed in size.  A size that is no multiple of 512
 * bytes is rounded up in the image.  The image is durable when this returns 0.
 *
 * -EEXIST: there is a file at @filename.  -EAGAIN, -EBUSY: @raw is in use.
 * -EINVAL: @raw is not raw, or empty, or an option is bad.
 */
int image_track(const char *filename, const char *raw,
                const struct image_track *how, struct error **errp);

/* --- drivers/table.c, core/check.c --- */

/* What is wrong, in words. */
struct image_finding {
    enum image_fault {
        IMAGE_CORRUPT, /* it may lose data, now or by the next write */
        IMAGE_LEAK,    /* it wastes room */
        IMAGE_LOST,    /* by a repair: a part of the disk reads as zeroes now */
        IMAGE_MENDED,  /* what a repair has done */
    } fault;
    const char *text; /* one line, of foreign bytes printable ones only */
    uint64_t guest;   /* of IMAGE_LOST: bytes of the disk */
    uint64_t guest_bytes;
};

enum image_repair { IMAGE_REPAIR_NONE, IMAGE_REPAIR_LEAKS, IMAGE_REPAIR_ALL };

struct image_check_options {
    enum image_repair repair;
    void (*found)(const struct image_finding *f, void *opaque); /* or NULL */
    bool (*stop)(void *opaque); /* asked now and then: end it?  Or NULL */
    void (*progress)(double share, void *opaque); /* or NULL */
    void *opaque;
};

/* As qemu-img check counts. */
struct image_check {
    const char *format;   /* static */
    uint64_t corruptions; /* that are left */
    uint64_t leaks;
    uint64_t corruptions_fixed;
    uint64_t leaks_fixed;
    uint64_t total_clusters;
    uint64_t allocated_clusters;
    uint64_t fragmented_clusters;
    uint64_t compressed_clusters;
    uint64_t image_end_offset; /* bytes */
};

/*
 * Hold the metadata of the image of @format (NULL: look) in @file, an open node
 * without other users, against each other, and repair them if that is asked
 * for; @file has to be writable then.  Backing files and data files are not
 * looked at. Blocks.
 *
 * A repair is durable when this returns 0.  A crash, or an error, at any moment
 * of it leaves an image that is no worse than before.
 *
 * 0: *c says what was found.  -ENOTSUP: @format cannot be checked, or the image
 * has unknown features; -EINVAL: it is not of this format; -ECANCELED;
 * -ENOSPC: a repair needs room; -EIO; others.
 */
int image_check(struct graph *g, struct node *file, const char *format,
                const struct image_check_options *o, struct image_check *c,
                struct error **errp);

/* --- core/amend.c, drivers/table.c --- */

struct image_amend {
    void (*progress)(double share, void *opaque); /* or NULL */
    void *opaque;
};

/*
 * Give an image, an open node without users, other properties.  @options are as
 * of image_create: size (only larger), compat, backing_file and backing_fmt
 * (names only: the caller knows that the content is the same), data_file (its
 * name), data_file_raw ("off"), lazy_refcounts.  A new size, and compat=0.10,
 * need the disk's data, so that a data file has to be open, and the key known.
 * Drains, and blocks.
 *
 * Durable when this returns 0.  After a crash, or an error of the storage, the
 * image has the old properties or all of the new ones, except for the size,
 * which changes in a step of its own.  What the guest sees is the same.
 *
 * -EINVAL: an option is bad; -ENOTSUP: it cannot be changed, or version 2
 * cannot have what is in the image: nothing has changed.  -EBUSY: a job works
 * on it.
 */
int image_amend(struct graph *g, struct node *image, const json_t *options,
                const struct image_amend *how, struct error **errp);

/* Option names that image_amend takes, NULL-terminated; NULL: no such format,
 * or its images cannot be amended. */
const char *const *image_amend_options(const char *format);

/* --- drivers/table.c, core/measure.c --- */

/* Bytes of a file, or a block device, that is large enough. */
struct image_measure {
    uint64_t required;        /* for the disk as it is */
    uint64_t fully_allocated; /* when all of it has been written */
    bool has_bitmaps;
    uint64_t bitmaps; /* for the source's persistent bitmaps, in addition */
};

/*
 * How large will an image of @format be, with these creation options
 * (image_create), to which the content of @disk is copied?  @disk NULL: it is
 * empty, and the options have "size".  A backing file is not opened, and no
 * secret is needed.  A data file is counted as if its data were in the image.
 * Blocks: asks for the status of all of @disk.
 *
 * -EINVAL: an option is bad.  -ENOTSUP: a format that is not measured.  -EFBIG.
 */
int image_measure(const char *format, const json_t *options, struct blk *disk,
                  struct image_measure *m, struct error **errp);

/* --- core/preallocate.c --- */

/* What a part of a disk gets before it is written to. */
enum image_room {
    IMAGE_ROOM_NONE,
    IMAGE_ROOM_METADATA, /* clusters of the image; not of raw */
    IMAGE_ROOM_FALLOC,   /* and blocks of the file system */
    IMAGE_ROOM_FULL,     /* and zeroes are written there */
};

/*
 * Give room to [@offset, @offset + @bytes) of the disk of @b, which reads as
 * zeroes and has just been made (blk_resize).  Needs PERM_WRITE.  Blocks; other
 * requests go on.  -ENOTSUP; -ENOSPC, and a part of it may have room then.
 */
int image_preallocate(struct blk *b, uint64_t offset, uint64_t bytes,
                      enum image_room how, struct error **errp);

/* --- drivers/table.c --- */

/* Option names that @format takes, NULL-terminated; NULL: no such format. */
const char *const *image_create_options(const char *format);

#endif /* NBDELTA_IMAGE_H */
