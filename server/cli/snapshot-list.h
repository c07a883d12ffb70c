/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_CLI_SNAPSHOT_LIST_H
#define NBDELTA_SERVER_CLI_SNAPSHOT_LIST_H

/* Print the internal snapshots of an image, SnapshotInfo of each, as qemu-img
 * snapshot -l does (QEMU 10).  Without snapshots nothing is printed. */
#include <jansson.h>

void snapshot_list_print(const json_t *snapshots);

#endif /* NBDELTA_SERVER_CLI_SNAPSHOT_LIST_H */
