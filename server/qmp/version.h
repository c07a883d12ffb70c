/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_QMP_VERSION_H
#define NBDELTA_SERVER_QMP_VERSION_H

#include <jansson.h>

/* The version of QEMU in qmp_version(), as text. */
extern const char qmp_like_version[];

/* The VersionInfo of the greeting and of query-version; a new reference. */
json_t *qmp_version(void);

#endif /* NBDELTA_SERVER_QMP_VERSION_H */
