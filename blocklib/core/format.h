/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_CORE_FORMAT_H
#define NBDELTA_CORE_FORMAT_H

/* What is looked at: so many of the first bytes of a file, and of the last. */
#define FORMAT_BYTES 512

/*
 * The format of a file that has @head at its beginning and @tail at its end
 * (zeroes where the file is shorter), as driver names are: "qcow2", "raw" when
 * nothing is known about it, or a format that we do not open.
 */
const char *format_probe(const void *head, const void *tail);

#endif /* NBDELTA_CORE_FORMAT_H */
