/* SPDX-License-Identifier: BSD-3-Clause */

/* Files of hashes.  What is taken has its units in order and inside of the
 * disk, is found, and is written as the same bytes. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "store/sums.h"

static void check(bool ok)
{
    if (!ok) {
        abort();
    }
}

static int file_of(const void *bytes, size_t length)
{
    int fd = memfd_create("sums", MFD_CLOEXEC);

    check(fd >= 0 && write(fd, bytes, length) == (ssize_t)length &&
          lseek(fd, 0, SEEK_SET) == 0);
    return fd;
}

static void check_taken(const struct sums *s, const uint8_t *data, size_t size)
{
    CLEANUP_CLOSE int fd = file_of("", 0);
    CLEANUP_FREE uint8_t *again = malloc(size + 1);
    char hash[HASH_TEXT_MAX];
    char right[HASH_TEXT_MAX];

    for (uint64_t i = 0; i < sums_count(s); i++) {
        check(sums_unit(s, i) < div_up(sums_size(s), SUMS_UNIT));
        check(i == 0 || sums_unit(s, i - 1) < sums_unit(s, i));
        check(sums_find(s, sums_unit(s, i)) == sums_hash(s, i));
    }
    check(sums_write(s, fd, hash, NULL) == 0);
    check(pread(fd, again, size + 1, 0) == (ssize_t)size);
    check(memcmp(again, data, size) == 0);
    check(hash_of(data, size, right, NULL) == 0 && strcmp(hash, right) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    CLEANUP_CLOSE int fd = file_of(data, size);
    CLEANUP_SUMS struct sums *s = NULL;
    CLEANUP_ERROR struct error *err = NULL;
    uint64_t disk = size >= 23 ? load_be64(data + 15) : 0;
    int r = sums_read(fd, disk, NULL, &s, &err);

    if (r == 0) {
        check_taken(s, data, size);
    } else {
        check(!s && err && error_code(err) == -r);
    }
    return 0;
}
