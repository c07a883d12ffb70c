/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_COMMANDS_HMP_INFO_H
#define NBDELTA_SERVER_COMMANDS_HMP_INFO_H

#include <jansson.h>

/* What QMP's query-block and query-block-jobs return, in the words of QEMU's
 * human monitor.  @only: the device or node of that name alone; NULL: all.
 * malloc()ed; NULL: no memory. */
char *hmp_info_block(const json_t *devices, const char *only);
char *hmp_info_jobs(const json_t *jobs);

#endif /* NBDELTA_SERVER_COMMANDS_HMP_INFO_H */
