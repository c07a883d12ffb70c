/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_STORE_STORE_H
#define NBDELTA_SERVER_STORE_STORE_H

/*
 * A backup directory
 * ==================
 *
 *   DIR/nbdelta.json          format, id, options that hold for all runs
 *   DIR/lock                  locked while anything is changed; says by whom
 *   DIR/vda/POINT.qcow2       what the point has of the disk vda
 *   DIR/vda/POINT.sums        hashes of it (sums.h)
 *   DIR/POINT.json            the manifest; with it the point is there
 *   DIR/POINT.json.pending    all files are there, the source has to be asked
 *   DIR/POINT.xml             the machine's definition
 *   DIR/POINT.verified        when it was verified, and what was damaged
 *
 * Files and folders are reached from DIR's descriptor, and no link is followed
 * below it.  Functions block for storage.  What they write is durable when
 * they return 0: a new file is written under another name, flushed, renamed,
 * and the directory is flushed.  After an error either the old file is there
 * or the whole new one.
 *
 * A store belongs to one thread at a time, except that what only reads may be
 * called by many.
 */
#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "store/manifest.h"
#include "store/name.h"

struct error;
struct graph;
struct node;
struct store;

#define STORE_POINTS_MAX 20000
#define STORE_FORMAT     1
/* While prune's journal is there, files have names that no manifest tells:
 * nothing is cleaned. */
#define STORE_JOURNAL "prune.json"

enum store_mode {
    STORE_READ,   /* takes no lock */
    STORE_WRITE,  /* locks */
    STORE_CREATE, /* locks; DIR is made, or may be empty */
};

/*
 * Open the directory @path.  @command is what DIR/lock says of us.
 *
 * -ENOENT: there is no such directory, or nothing of ours in it; -EBUSY:
 * somebody else has the lock (the text says who); -EINVAL: it is something
 * else, or has a newer format; -ENOTDIR, -ELOOP, -EACCES, -EIO...  A manifest
 * that cannot be read is no error here (struct store_point).
 */
int store_open(const char *path, enum store_mode mode, const char *command,
               struct store **sp, struct error **errp);
/* Unlocks.  NULL is fine. */
void store_close(struct store *s);
static inline void store_cleanup(struct store **s)
{
    store_close(*s);
}
#define CLEANUP_STORE __attribute__((cleanup(store_cleanup)))

/* If store_open has made the directory, and no point and no part of one is in
 * it, it goes again; what cannot be removed stays.  Close @s next. */
void store_unmake(struct store *s);

/* Without links, as it was found. */
const char *store_path(const struct store *s);
const char *store_id(const struct store *s);
int store_dir(const struct store *s); /* its descriptor */

/* Options that hold for all runs: an object, which is the store's. */
const json_t *store_options(const struct store *s);
int store_set_options(struct store *s, const json_t *options,
                      struct error **errp);

/* --- Points --- */

struct store_point {
    char name[POINT_NAME_MAX];
    struct manifest *manifest; /* NULL: it cannot be read */
    char *why;                 /* then the reason */
};

/* All points, oldest first, and the pending one (or NULL).  They are the
 * store's, and change when a point comes or goes. */
unsigned store_count(const struct store *s);
const struct store_point *store_point(const struct store *s, unsigned i);
const struct store_point *store_pending(const struct store *s);
/* The newest, or NULL. */
const struct store_point *store_latest(const struct store *s);
/* That of this name, pending or not, or NULL. */
const struct store_point *store_named(const struct store *s, const char *name);

/* The point that @word (name.h; NULL: the latest) means.  -ENOENT: none;
 * -EINVAL: more than one; -EUCLEAN: its manifest cannot be read. */
int store_find_point(const struct store *s, const char *word,
                     const struct store_point **pp, struct error **errp);

/* Read all manifests again. */
int store_reload(struct store *s, struct error **errp);

/* The name of a point that is made now: later than all points, than a pending
 * one that was dropped, and than @used, the name of one that was given up ("":
 * none). */
int store_new_name(const struct store *s, const char *used, char *name,
                   struct error **errp);

/*
 * Read the manifest of point @name again, where a prune may have changed it.
 * What was known of it before lives until the store is closed.  -ENOMEM.
 */
int store_refresh(struct store *s, const char *name, struct error **errp);

/*
 * Keep a point as it is while it is read (shared), or make sure that nobody
 * reads it (alone).  Locks its manifest; shared, that is refreshed.  The points
 * below it do not change meanwhile either.  *fd: close it to let go.  -ENOENT:
 * it is gone; -EBUSY: it is being read, or pruned, or a prune that was killed
 * has to go on with it.
 */
int store_hold(struct store *s, const char *point, bool alone, int *fd,
               struct error **errp);

/* Many of them. */
struct holds {
    unsigned count;
    int *fds;
};
int holds_add(struct store *s, const char *point, bool alone, struct holds *h,
              struct error **errp);
void holds_release(struct holds *h);

/* Hold @point and all points that its disks have for parents, shared.  Points
 * that were locked before an error are in @h. */
int store_hold_chain(struct store *s, const char *point, struct holds *h,
                     struct error **errp);

/* --- Files of disks --- */

/* Make the folder of a disk unless it is there. */
int store_add_disk(struct store *s, const char *disk, struct error **errp);

/*
 * A path of DIR/DISK/POINT.ENDING ("qcow2", "sums", with ".part" while it is
 * made) for callers that need one; free it.  The folder is reached by way of a
 * descriptor that the store keeps: the path is good until it is closed, for
 * this process alone.  -ENOENT: there is no such folder.
 */
int store_file_path(struct store *s, const char *disk, const char *point,
                    const char *ending, char **path, struct error **errp);

/* Open a file for reading: a regular one, no link.  *size: its bytes, or NULL.
 * -ENOENT; -EINVAL: it is no regular file. */
int store_open_file(struct store *s, const char *disk, const char *point,
                    const char *ending, int *fd, uint64_t *size,
                    struct error **errp);

/* Create DIR/DISK/POINT.ENDING, which must not be there, for writing. */
int store_create_file(struct store *s, const char *disk, const char *point,
                      const char *ending, int *fd, struct error **errp);

/* The copy of a disk is done: flush POINT.qcow2.part and POINT.sums.part, and
 * give them their names. */
int store_keep_disk(struct store *s, const char *disk, const char *point,
                    struct error **errp);

/* Remove what there is of a disk's files of a point that no manifest names. */
int store_drop_disk(struct store *s, const char *disk, const char *point,
                    struct error **errp);

/* Options of graph_open for the file of @disk in @point alone, without its
 * parents.  It is a regular file.  A new reference. */
int store_layer_options(struct store *s, const char *disk, const char *point,
                        json_t **options, struct error **errp);

/* The same for the disk as it was at @point: the file with its parents, as the
 * manifests tell.  -EUCLEAN: a manifest or a file of the chain is missing. */
int store_chain_options(struct store *s, const char *disk, const char *point,
                        json_t **options, struct error **errp);

/* Of @m's disk: the disk in its parent's manifest, or NULL: it has none.
 * -EUCLEAN: it is missing, damaged, or another than @d was made over. */
int store_parent(const struct store *s, const struct manifest_disk *d,
                 const struct manifest_disk **parent, struct error **errp);

/* --- The end of a run --- */

/* Store the machine's definition; @hash has HASH_TEXT_MAX bytes. */
int store_put_definition(struct store *s, const char *point, const char *text,
                         char *hash, struct error **errp);

/* Store @m as pending.  @m is the store's from then on, and freed on an
 * error, too. */
int store_put_pending(struct store *s, struct manifest *m, struct error **errp);

/* The pending point becomes one.  -EUCLEAN: a file of it is missing. */
int store_finish_pending(struct store *s, struct error **errp);

/* The pending point goes, with its files. */
int store_drop_pending(struct store *s, struct error **errp);

/* Remove files of our names that no manifest has: what a run has left that was
 * killed.  Files of points whose manifests cannot be read stay.  *removed:
 * their number, or NULL. */
int store_clean(struct store *s, unsigned *removed, struct error **errp);

/* Make bytes a file of DIR, @name, or replace it. */
int store_put_file(const struct store *s, const char *name, const void *bytes,
                   size_t length, struct error **errp);
/* All bytes of a file of DIR, with a NUL byte behind; free them.  -ENOENT,
 * -EFBIG: more than @max, -EINVAL: no regular file. */
int store_get_file(const struct store *s, const char *name, size_t max,
                   char **bytes, size_t *length, struct error **errp);

#endif /* NBDELTA_SERVER_STORE_STORE_H */
