/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_COPY_SCRATCH_H
#define NBDELTA_COPY_SCRATCH_H

/* Temporary space for blocks: see scratch.c. */
#include "core/graph.h"

struct scratch_options {
    const char *dir; /* for the file; NULL: $TMPDIR or /var/tmp */
    uint64_t quota;  /* most bytes that it has at once; 0: no limit */
    bool keep_free;  /* the file leaves a tenth of its file system free, or half
                        of what is free now if that is less */
    uint64_t memory; /* so many of these bytes are in memory */
};

/*
 * Make a node without a name, of the size of @like, that reads as zeroes.  In a
 * control section.  The caller has its only reference.  Errors are errors of
 * open(2): the file cannot be made in the directory.
 */
int scratch_new(struct graph *g, struct node *like,
                const struct scratch_options *o, struct node **np,
                struct error **errp);

struct scratch_usage {
    uint64_t bytes;
    bool in_file;       /* some bytes are in the file, or were */
    bool quota_was_hit; /* the last write of a new unit hit the quota, or what
                           is to be kept free */
    uint64_t kept_free; /* bytes that the file leaves free; 0: none */
};
void scratch_usage(const struct node *n, struct scratch_usage *u);

/* Remove scratch files in @dir (NULL: as above) whose processes are gone. */
void scratch_clean(const char *dir);

#endif /* NBDELTA_COPY_SCRATCH_H */
