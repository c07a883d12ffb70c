/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_QCOW2_CREATE_LUKS_H
#define NBDELTA_QCOW2_CREATE_LUKS_H

/* The LUKS header of a new image. */
#include "crypto/luks.h"

struct error;
struct graph;
struct opts;
struct toil;

struct create_luks {
    bool on;
    struct luks_wish wish; /* its words, and the secret's id, are in the opts */
    const char *secret;
    struct luks_header header;
    unsigned char head[LUKS_HEADER_BYTES]; /* as it will be in the image */
    unsigned char key[SECTOR_KEY_MAX];
};

/* Take the options encrypt.*; without encrypt.format there may be none. */
int qcow2_create_luks_take(struct opts *o, struct create_luks *c,
                           struct error **errp);
/* -ENOTSUP: a cipher that we do not have. */
int qcow2_create_luks_plan(struct create_luks *c, struct error **errp);
/* Bytes of header and slots; 0: the image is not encrypted. */
uint64_t qcow2_create_luks_bytes(const struct create_luks *c);

/* Make header and slots in @area, which has that many zeroes, with the secret
 * in @g (NULL: there are none).  Computes for encrypt.iter-time. */
int qcow2_create_luks_make(struct create_luks *c, struct graph *g,
                           unsigned char *area, struct error **errp);

/* So that the image can be opened at once (core/toil.h); NULL: no memory. */
struct toil *qcow2_create_luks_known(const struct create_luks *c);
void qcow2_create_luks_forget(struct create_luks *c);

#endif /* NBDELTA_QCOW2_CREATE_LUKS_H */
