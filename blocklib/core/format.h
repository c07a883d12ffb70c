/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_CORE_FORMAT_H
#define NBDELTA_CORE_FORMAT_H

struct driver_table;

/*
 * What QEMU takes where no driver is named: a file name names a file, and bytes
 * that look like no format are a raw disk.
 */
#define PROTOCOL_OF_FILES "file"
#define FORMAT_OF_BYTES   "raw"

/* A probe looks at so many of the first bytes of a file, and of the last. */
#define FORMAT_BYTES 512

/*
 * The format of a file that has @head at its beginning and @tail at its end
 * (zeroes where the file is shorter): the name of a driver in @t whose format
 * it is, or of a format that we do not open, or FORMAT_OF_BYTES.
 */
const char *format_probe(const struct driver_table *t, const void *head,
                         const void *tail);

#endif /* NBDELTA_CORE_FORMAT_H */
