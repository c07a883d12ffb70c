/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_CORE_OPEN_H
#define NBDELTA_CORE_OPEN_H

struct driver;

/* A driver by the word in "driver": "...", or NULL. */
const struct driver *driver_find(const char *name);

#endif /* NBDELTA_CORE_OPEN_H */
