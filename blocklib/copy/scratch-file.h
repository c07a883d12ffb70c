/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_COPY_SCRATCH_FILE_H
#define NBDELTA_COPY_SCRATCH_FILE_H

/* The file of a scratch: slots of SCRATCH_UNIT bytes (scratch-file.c).  All
 * functions may run in any number of threads. */
#include <sys/uio.h>

#include "nbdelta/thread.h"
#include "nbdelta/types.h"

#define SCRATCH_UNIT UINT64_C(4096)

struct scratch_file {
    int fd;
    uint64_t kept_free; /* of the file system; 0: there is no such limit */

    mutex_t lock; /* after a unit's lock */
    /* Guarded by lock. */
    uint64_t slots;
    uint64_t *free_slots;
    size_t free_count;
    size_t free_room;
    uint64_t allowance; /* bytes that slots may take before a look */
};

/* Make the file in @dir (NULL: $TMPDIR or /var/tmp).  Errors are errors of
 * open(2), told in *errp. */
int scratch_file_open(struct scratch_file *f, const char *dir, bool keep_free,
                      struct error **errp);
void scratch_file_close(struct scratch_file *f);

/* Take at most @most slots that lie in a row.  Returns their number; 0: the
 * file system has no room for any. */
uint64_t scratch_slots_take(struct scratch_file *f, uint64_t most,
                            uint64_t *first);
/* Give slots in a row back, and their room to the file system. */
void scratch_slots_free(struct scratch_file *f, uint64_t first, uint64_t count);

/* 0 or -errno; blocks. */
int scratch_file_read(const struct scratch_file *f, char *buf, uint64_t bytes,
                      uint64_t offset);
int scratch_file_writev(const struct scratch_file *f, const struct iovec *iov,
                        int cnt, uint64_t offset);

#endif /* NBDELTA_COPY_SCRATCH_FILE_H */
