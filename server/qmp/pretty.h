/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_QMP_PRETTY_H
#define NBDELTA_SERVER_QMP_PRETTY_H

#include <jansson.h>
#include <stddef.h>

/* @message on many lines, as QEMU writes it: each ends as a line of QMP does,
 * and what is empty has two.  malloc()ed; NULL: no memory. */
char *qmp_to_pretty(const json_t *message, size_t *len);

#endif /* NBDELTA_SERVER_QMP_PRETTY_H */
