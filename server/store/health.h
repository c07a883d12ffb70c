/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_STORE_HEALTH_H
#define NBDELTA_SERVER_STORE_HEALTH_H

/*
 * How a backup directory is, for a monitoring system
 * ==================================================
 *
 * By manifests, by the notes of verifications, and by which files are there.
 * No file of a disk is read.
 */
#include <stdbool.h>
#include <stdint.h>

struct error;
struct manifest_disk;
struct store;

/* Instants are seconds since 1970; 0: there is none. */
struct store_health {
    unsigned points;     /* whose manifests can be used */
    unsigned unreadable; /* whose manifests cannot */
    unsigned incomplete; /* that lack a file, or what they were made over */
    unsigned damaged;    /* in which damage was found */
    uint64_t damages;    /* ranges of that */
    int64_t oldest;      /* point, by the clock of its time */
    int64_t latest;
    int64_t verified; /* all points were verified, or made, since then */
    int64_t pruning;  /* since then a prune has not ended */
    bool pending;     /* a point waits for its source */
    char first[300];  /* of what is wrong, printable; "": nothing */
};

/*
 * Look at the directory of @s, whose manifests are read again where somebody
 * may have changed it meanwhile.  Blocks for storage.  -ENOMEM, and errors of
 * reading a directory.
 */
int store_look(struct store *s, struct store_health *h, struct error **errp);

/* Since when has a prune not ended, or been killed?  0: there is none.  Files
 * and manifests need not agree meanwhile. */
int64_t store_pruning(const struct store *s);

/*
 * Are the files of a disk of @point there, and what they were made over?
 * *bytes: what the files take on the storage, also after an error.  -EUCLEAN:
 * the parent is missing, or another; -ENOENT and others: a file is.
 */
int store_look_disk(struct store *s, const char *point,
                    const struct manifest_disk *d, uint64_t *bytes,
                    struct error **errp);

#endif /* NBDELTA_SERVER_STORE_HEALTH_H */
