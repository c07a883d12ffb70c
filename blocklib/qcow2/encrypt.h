/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_QCOW2_ENCRYPT_H
#define NBDELTA_QCOW2_ENCRYPT_H

/* Images that are encrypted with LUKS (encrypt.c). */
#include "qcow2/qcow2.h"

/*
 * Read the LUKS header of an image that has one, and unlock it with the secret
 * that the options name (not where only headers are looked at).  -EINPROGRESS:
 * that is left to who opens (core/toil.h).  -EPERM: the secret opens no slot.
 */
int qcow2_luks_open(struct qcow2 *s, const struct qcow2_header *h,
                    struct opts *opts, struct error **errp);
void qcow2_luks_free(struct qcow2 *s);

/* Members of the option "encrypt". */
extern const struct option qcow2_encrypt_options[];

/* Add the LUKS header's clusters to overlap.h's set. */
int qcow2_luks_cover(struct qcow2 *s) REQUIRES(s->meta);

/* Is the image encrypted, and its key not known?  Its data cannot be moved. */
bool qcow2_is_locked(const struct qcow2 *s);

/* "encrypt" of the image's description. */
json_t *qcow2_luks_describe(const struct qcow2 *s);

/* Write to a place of the data file, encrypted if the image is.  The place and
 * the length are whole sectors then. */
int qcow2_write_data(struct qcow2 *s, uint64_t host, uint64_t bytes,
                     const struct iovec *iov, int cnt, unsigned flags);

/* driver.decode and driver.write_coded. */
int qcow2_decode(struct node *n, uint64_t host, const struct iovec *iov,
                 int cnt);
int qcow2_write_coded(struct node *n, uint64_t host, uint64_t bytes,
                      const struct iovec *iov, int cnt, unsigned flags);

/* A key that was just made: the next open of this image in the same list of
 * toils (core/toil.h) finds it. */
struct toil *qcow2_luks_known(const unsigned char *header,
                              const unsigned char *key);

#endif /* NBDELTA_QCOW2_ENCRYPT_H */
