/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_COMMANDS_THROTTLE_H
#define NBDELTA_SERVER_COMMANDS_THROTTLE_H

#include <jansson.h>

#include "args.h"

/* Members of BlockDeviceInfo that are there where a device has limits. */
#define THROTTLE_SHOWN(what) \
    QMP_OPT(what "_max", INT), QMP_OPT(what "_max_length", INT)
#define THROTTLE_MEMBERS                                                       \
    THROTTLE_SHOWN("bps"), THROTTLE_SHOWN("bps_rd"), THROTTLE_SHOWN("bps_wr"), \
        THROTTLE_SHOWN("iops"), THROTTLE_SHOWN("iops_rd"),                     \
        THROTTLE_SHOWN("iops_wr"), QMP_OPT("iops_size", INT),                  \
        QMP_OPT("group", STR)

/* Put @limits (of blk_query_throttle(), or NULL) into a BlockDeviceInfo. */
void throttle_show(json_t *info, const json_t *limits);

#endif /* NBDELTA_SERVER_COMMANDS_THROTTLE_H */
