/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_SOURCE_SOURCE_H
#define NBDELTA_SERVER_SOURCE_SOURCE_H

/*
 * Where the disks of a backup come from
 * =====================================
 *
 *   open     look who answers at SOURCE; take away what a killed run has left
 *            there; name the disks
 *   begin    one instant for all wanted disks: they are frozen, what has
 *            changed since a checkpoint is known, a new checkpoint begins
 *   renew    now and then while disks are copied
 *   end      frozen disks go; the new checkpoint stays or goes
 *   close    whatever was begun and not ended, ends; the new checkpoint goes
 *
 * What a killed run has begun may be gone on with instead: `adopt` says which
 * one that is, open lets it stand, and begin takes it over.
 *
 * A checkpoint is a name, as of a bitmap.  The caller chooses it; only
 * checkpoints that the caller names are made, used and removed.  Everything
 * else that a source makes at the other side is named after `id`
 * ("nbdelta-ID-..."), so that the next run of the same directory finds it.
 *
 * All functions block, and are called by one thread at a time, except that
 * source_each_dirty() may be called for several disks at once.  None waits for
 * the other side longer than `timeout_s` for one answer; a monitor that does
 * not greet within 5 s is busy.
 */
#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

struct bitmap;
struct error;
struct graph;
struct node;
struct agent;
struct source;
struct source_ops;
struct talk;

#define SOURCE_ID_MAX 64

struct source_options {
    struct graph *graph; /* where nodes are opened; outlives the source */
    const char *id;      /* of the directory: letters, digits, '-' */
    const char *format;  /* of an image; NULL: probed */
    const char *bitmap;  /* of an NBD URI: what is dirty there, whatever `since`
                            is; or NULL */
    const char *instant; /* of an NBD URI: a word of the caller's, who changes
                            it whenever the bytes change; NULL: none */
    const char *scratch; /* directory at the source; NULL: $TMPDIR, /var/tmp */
    uint64_t quota;      /* bytes of scratch for each disk; 0: no limit */
    const char *nbd; /* URI of the NBD server that QEMU runs, id of that of our
                        daemon; NULL: one of our own, or found */
    const char *tls_creds; /* id of a client's credentials of the graph: for
                              qmp://HOST:PORT, and NBD servers that want TLS */
    const char *connect;   /* libvirt's connection URI; NULL: its default */
    bool tunnel; /* to a domain's NBD server at another host, by the ssh that
                    `connect` names; of libvirt only */
    unsigned connections; /* to each export, where it allows; 0: 4 */
    unsigned timeout_s;   /* 0: 60 */
    struct agent *agent;  /* freezes file systems: agent_start(), or
                             source_start_guard(); NULL: nobody can */
    int stop_fd;          /* readable: the user wants an end; -1: none.  begin
                             undoes what it has done, then: -ECANCELED */
    const json_t *adopt;  /* source_identity() of a run that was killed: what
                             that one has begun is gone on with, where it still
                             stands; NULL: none */
    bool adopt_done; /* all of its disks have been copied: open ends it, and
                        its checkpoint stays */
};

struct source_disk {
    /* From open on. */
    char *name;
    uint64_t size; /* bytes; begin writes the size of the instant */
    char *image;   /* what it is kept in, in words of the source: two disks that
                      have changed their names are told apart by it; or NULL */

    /* The caller's, before begin. */
    bool skip;         /* not this one */
    const char *since; /* a checkpoint; NULL: all is to be read */
    bool whole;        /* all can be read, also where there is a dirty map */

    /* From begin to end. */
    json_t *options;       /* opens the frozen disk as a node, read-only; where
                              there is a dirty map, nbdelta has only what is
                              dirty, and answers -EINVAL to other reads, but
                              with `whole` */
    json_t *dirty;         /* opens a node with x-dirty-bitmap; or NULL */
    struct bitmap *bitmap; /* or what is dirty, in a bitmap that is here */
    bool told;             /* or ops->each_dirty tells it */
    const char *reason; /* why none of them is there although `since` was given;
                           or why there is no new checkpoint.  Static; NULL */
    bool checkpoint;    /* it is part of the new checkpoint */
};

/*
 * Words of `reason`:
 *   new-disk              the disk has no bitmaps at all
 *   no-checkpoint         it has no such bitmap
 *   base-bitmap           an image below has it, and knows nothing of newer
 *                         writes
 *   bitmap-disabled       it does not collect changes
 *   checkpoint-pending    it belongs to a backup that has not ended
 *   bitmap-inconsistent   it has, and nobody can trust it
 *   bitmap-busy           somebody else uses it just now
 *   no-bitmaps            the disk's format cannot keep any (raw)
 *   resized               it is about another size
 */

struct source {
    const struct source_ops *ops;
    void *opaque;        /* the kind's own */
    struct talk *talk;   /* with the monitor, of kinds that have one */
    const char *version; /* what answers there, "QEMU 7.2.22"; or NULL */
    struct graph *graph;
    struct source_disk *disks;
    unsigned count;
    bool begun;
    bool adopted; /* from open to end: the disks are the ones that a killed run
                     has frozen */
    struct agent *agent; /* the caller's, or NULL */
    int stop_fd;
    bool still;        /* the guest's file systems stand still */
    uint64_t still_ns; /* since when */
    char *froze;       /* what the guest's agent has answered; or NULL */
};

/* @unusable: a word as above, or NULL.  Non-zero ends the walk. */
typedef int source_checkpoint_fn(const char *name,
                                 const struct source_disk *disk,
                                 const char *unusable, void *opaque);

/*
 * What a kind of source can do.  Members may be NULL, except open, begin, end
 * and close.  Callers use the functions below.
 */
struct source_ops {
    const char *name; /* "image", "nbd", "rbd", "qemu", "nbdelta", "libvirt" */

    /* Fill s->opaque and s->disks.  After a failure close is called. */
    int (*open)(struct source *s, const char *what,
                const struct source_options *o, struct error **errp);
    int (*begin)(struct source *s, const char *checkpoint, struct error **errp);
    int (*renew)(struct source *s, struct error **errp);
    int (*end)(struct source *s, bool keep, struct error **errp);
    int (*each_checkpoint)(struct source *s, source_checkpoint_fn *fn,
                           void *opaque, struct error **errp);
    int (*forget)(struct source *s, const char *checkpoint,
                  struct error **errp);
    int (*definition)(struct source *s, char **xml, struct error **errp);
    /* Be the guard (guard.h) of @what's guest, in a process of its own. */
    void (*guard)(const char *what, const struct source_options *o, int fd);
    json_t *(*identity)(struct source *s);
    /* Of a disk that is `told`; as source_each_dirty(), and neighbours need not
     * come as one. */
    int (*each_dirty)(struct source *s, const struct source_disk *disk,
                      struct node *n,
                      int (*fn)(uint64_t offset, uint64_t bytes, void *opaque),
                      void *opaque, struct error **errp);
    void (*close)(struct source *s);
};

/* --- What callers use --- */

/* The name of the @i-th kind that is a module, for source_module_load(); NULL:
 * there are no more. */
const char *source_module_name(size_t i);

/*
 * @what: "libvirt:DOMAIN"; the path of a Unix socket, or "qmp://HOST:PORT",
 * where QEMU or nbdelta answers QMP; an NBD URI; images of Ceph (rbd-names.h);
 * else an image.  *sp is NULL after a failure.  -EBUSY: a monitor that answers
 * nobody; -EAGAIN: an image that another process uses; -EPROTO; -ENOTSUP;
 * others.
 */
int source_open(const char *what, const struct source_options *o,
                struct source **sp, struct error **errp);

/*
 * Of a source that can freeze a guest's file systems itself, as a domain of
 * libvirt: start the process that thaws them.  Call this before there are
 * threads.  *ap is NULL where @what is another kind.
 */
int source_start_guard(const char *what, const struct source_options *o,
                       struct agent **ap, struct error **errp);

/* NULL is fine.  Ends what was begun, as failed. */
void source_close(struct source *s);

/*
 * Begin, once the backup before has ended, with a new checkpoint of that name
 * on all disks that can keep one; or without any (NULL).  After a failure
 * everything is as it was.  A disk that cannot tell what has changed has a
 * reason and no dirty map: that is no failure.  -ECANCELED: see stop_fd.
 *
 * Where s->adopted, the instant is that of the killed run.  -ESTALE then: the
 * disks are frozen no more, or were frozen in another way than they are wanted
 * now, or with another checkpoint.  Nothing is left of it, and source_begin()
 * may be called again, for a new instant.
 */
int source_begin(struct source *s, const char *checkpoint, struct error **errp);

/* Seconds after which source_renew() should be called again, or 0: never.
 * After an error of it the disks may be frozen no more. */
#define SOURCE_RENEW_S 60
int source_renew(struct source *s, struct error **errp);

/*
 * The frozen disks go; close their nodes first.  With @keep the new checkpoint
 * stays, durably, once this has returned 0.  After a failure with @keep it is
 * not known whether it is there (each_checkpoint tells), and source_end() may
 * be called once more, also without @keep.
 */
int source_end(struct source *s, bool keep, struct error **errp);

/* All checkpoints, also those of others; what is adopted has none yet.  What
 * @fn returned, or an error. */
int source_each_checkpoint(struct source *s, source_checkpoint_fn *fn,
                           void *opaque, struct error **errp);

/* Remove @checkpoint from all disks that have it.  One that is not there is no
 * failure. */
int source_forget(struct source *s, const char *checkpoint,
                  struct error **errp);

/* The domain's definition, malloc()ed; *xml is NULL where there is none. */
int source_definition(struct source *s, char **xml, struct error **errp);

/*
 * Freeze the guest's file systems (@on), or thaw them.  They stand still for at
 * most 10 s, and are thawed by source_close(), too.  A thaw that comes too late
 * is -ETIMEDOUT: they were thawed already.  -ENOTSUP: this source cannot.
 */
int source_freeze(struct source *s, bool on, struct error **errp);

/*
 * What its disks have, told by something that changes when they do: when it is
 * the same in a later run, they have the same bytes.  Of a source in use, only
 * what is frozen has one: from begin, or with s->adopted from open, to end.  A
 * new reference, or NULL: nobody can tell.
 */
json_t *source_identity(struct source *s);

/* Does anything say what has changed in @d since `since`? */
bool source_has_map(const struct source_disk *d);

/* The disk of that name, or NULL. */
struct source_disk *source_find(const struct source *s, const char *name);

/*
 * Tell @fn of all dirty ranges of @disk, in order, between begin and end; of
 * the whole disk, if nobody knows what has changed.  Neighbours may come as
 * one.  Non-zero from @fn ends that and is returned.  @n: a node that was
 * opened with disk->options, which spares opening another one; or NULL.
 */
typedef int source_range_fn(uint64_t offset, uint64_t bytes, void *opaque);
int source_each_dirty(struct source *s, const struct source_disk *disk,
                      struct node *n, source_range_fn *fn, void *opaque,
                      struct error **errp);

/* --- What kinds use --- */

extern const struct source_ops source_image;
extern const struct source_ops source_nbd;
extern const struct source_ops source_rbd;
extern const struct source_ops source_qemu;
extern const struct source_ops source_nbdelta;

/* Append a disk; NULL: no memory.  @image: what it is kept in, or NULL; too
 * long a text is left out. */
#define SOURCE_IMAGE_MAX 4096
struct source_disk *source_add_disk(struct source *s, const char *name,
                                    const char *image, uint64_t size);

/* Forget what begin has written to the disks. */
void source_reset_disks(struct source *s);

#endif /* NBDELTA_SERVER_SOURCE_SOURCE_H */
