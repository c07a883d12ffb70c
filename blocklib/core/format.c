/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Which format a file has.  Drivers know their own formats.  A table has
 * formats that we do not open, because files of these must not be taken for the
 * bytes of a disk.
 */
#include "core/format.h"

#include <string.h>

#include "core/driver.h"
#include "nbdelta/bytes.h"
#include "nbdelta/types.h"

static const struct magic {
    const char *format;
    const char *bytes;
    size_t len;
    size_t offset;
} magics[] = {
    {"qcow", "QFI\xfb\0\0\0\1", 8, 0}, /* version 1 */
    {"qed", "QED\0", 4, 0},
    {"vmdk", "KDMV", 4, 0},
    {"vmdk", "COWD", 4, 0},
    {"vmdk", "# Disk DescriptorFile", 21, 0}, /* names its files */
    {"vdi", "\x7f\x10\xda\xbe", 4, 64},
    {"vhdx", "vhdxfile", 8, 0},
    {"vpc", "conectix", 8, 0},
    {"parallels", "WithoutFreeSpace", 16, 0},
    {"parallels", "WithouFreSpacExt", 16, 0},
    {"luks", "LUKS\xba\xbe", 6, 0},
    {"bochs", "Bochs Virtual HD Image", 22, 0},
    {"cloop", "#!/bin/sh\n#V2.0 Format\n", 23, 0},
};

/* A VHD of fixed size is a raw disk with this footer behind it. */
#define VHD_FIXED    2
#define VHD_TYPE     60
#define VHD_CHECKSUM 64

static bool is_fixed_vhd(const unsigned char *tail)
{
    uint32_t sum = 0;

    if (memcmp(tail, "conectix", 8) != 0 ||
        load_be32(tail + VHD_TYPE) != VHD_FIXED) {
        return false;
    }
    for (size_t i = 0; i < FORMAT_BYTES; i++) {
        bool own = i >= VHD_CHECKSUM && i < VHD_CHECKSUM + 4;

        sum += own ? 0 : tail[i];
    }
    return load_be32(tail + VHD_CHECKSUM) == ~sum;
}

/* The footer has version 4 and states its own size. */
static bool is_dmg(const unsigned char *tail)
{
    return memcmp(tail, "koly", 4) == 0 && load_be32(tail + 4) == 4 &&
           load_be32(tail + 8) == FORMAT_BYTES;
}

const char *format_probe(const struct driver_table *t, const void *head,
                         const void *tail)
{
    for (const struct driver *const *d = t->drivers; *d; d++) {
        if ((*d)->image && (*d)->image->probe &&
            (*d)->image->probe(head, tail)) {
            return (*d)->name;
        }
    }
    for (size_t i = 0; i < ARRAY_SIZE(magics); i++) {
        const struct magic *m = &magics[i];

        if (memcmp((const char *)head + m->offset, m->bytes, m->len) == 0) {
            return m->format;
        }
    }
    return is_fixed_vhd(tail) ? "vpc" : is_dmg(tail) ? "dmg" : FORMAT_OF_BYTES;
}
