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

#endif /* NBDELTA_SERVER_STORE_HEALTH_H */
