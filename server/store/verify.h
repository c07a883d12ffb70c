/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_STORE_VERIFY_H
#define NBDELTA_SERVER_STORE_VERIFY_H

/*
 * Do the files have what was written?
 * ===================================
 *
 * Each file of a point is looked at alone: its manifest, the hash of its .sums
 * file, the image's header (size, parent), and which units the image decides.
 * Then the units are read and hashed, on threads.  Memory: 1 MiB for each
 * thread, what blocklib has for one image, and the file's sums.
 */
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "store/manifest.h"
#include "store/name.h"

struct error;
struct store;

struct damage {
    const char *point;
    const char *disk; /* NULL: the whole point */
    uint64_t offset;  /* of the guest's disk */
    uint64_t bytes;   /* 0: the file as a whole */
    const char *what; /* a phrase */
};

/* Bytes that were read and are to be read, about: as manifests say.  Any thread
 * may look. */
struct verify_progress {
    _Atomic uint64_t done;
    _Atomic uint64_t total;
};

struct verify_options {
    bool quick;           /* read no data */
    unsigned part, parts; /* the part-th (from 1) of so many; 0, 0: all */
    unsigned threads;     /* 0: as many as there are processors, at most 16 */
    _Atomic bool *stop;   /* set by another thread, to end it; or NULL */
    struct verify_progress *progress; /* zeroes at first; or NULL */
    void (*on_damage)(const struct damage *d, void *opaque);
    void *opaque;
};

struct verify_result {
    uint64_t files;
    uint64_t units; /* that were read */
    uint64_t damages;
};

/*
 * Verify the files of @point and, with @chain, of all points that its disks
 * have for parents.
 * 0: all is as it was written; -EUCLEAN: damage was told; -EBUSY: a prune
 * works on a point, or was killed there, and the others are right; -ECANCELED;
 * other errors: it could not be verified. What was found is stored as
 * POINT.verified, where that can be written.
 */
int verify_point(struct store *s, const char *point, bool chain,
                 const struct verify_options *o, struct verify_result *result,
                 struct error **errp);

/* The same for all points, each file once. */
int verify_all(struct store *s, const struct verify_options *o,
               struct verify_result *result, struct error **errp);

/* What POINT.verified says. */
struct verified {
    int64_t when;     /* all of it is not older than that; 0: never verified */
    uint64_t damages; /* found by the last verification of each part */
    uint64_t lost;    /* of these: what could not be healed */
};
/* A file that is not there, or that makes no sense, says "never". */
void verified_read(const struct store *s, const char *point,
                   struct verified *v);
/* Was the disk's file in that point found damaged? */
bool verified_damaged(const struct store *s, const char *point,
                      const char *disk);

#endif /* NBDELTA_SERVER_STORE_VERIFY_H */
