/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A hostile LUKS header: parsed, named, and unlocked as far as patience goes.
 *
 * The first 4 bytes of the input are the room that there is for header and
 * slots, little-endian; then comes the header.  What a parsed header says is
 * within the limits that its users rely on; a refused one gets a reason, in one
 * printable line.  Slots have zeroes in them.
 */
#include <endian.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "crypto/luks.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"

static void check(bool ok)
{
    if (!ok) {
        abort();
    }
}

static void check_error(const struct error *err, int r)
{
    check(err && error_code(err) == -r && error_message(err)[0] != '\0');
    for (const char *p = error_message(err); *p; p++) {
        check((unsigned char)*p >= 0x20 && *p != 0x7f);
    }
}

static bool is_enough(void *opaque)
{
    unsigned *looks = opaque;

    return ++*looks > 4;
}

static void unlock(const struct luks_header *h)
{
    static unsigned char zeroes[LUKS_MATERIAL_MAX];
    const unsigned char *material[LUKS_SLOTS];
    unsigned char key[SECTOR_KEY_MAX];
    unsigned looks = 0;
    const struct kdf_patience p = {.stop = is_enough, .opaque = &looks};
    CLEANUP_ERROR struct error *err = NULL;

    for (unsigned i = 0; i < LUKS_SLOTS; i++) {
        material[i] = h->slots[i].active ? zeroes : NULL;
    }
    int r = luks_unlock(h, material, "x", 1, &p, key, &err);
    if (r < 0) {
        check_error(err, r);
    }
}

static void check_header(const struct luks_header *h, uint64_t room)
{
    struct luks_names names;

    luks_name(h, &names);
    check(strncmp(names.cipher, "aes-", 4) == 0 && names.mode && names.iv);
    check(h->hash && h->hash->bytes <= KDF_HASH_MAX);
    check(h->spec.key_bytes <= SECTOR_KEY_MAX);
    check(luks_material_bytes(h) <= LUKS_MATERIAL_MAX);
    for (const char *c = h->uuid; *c; c++) {
        check(*c >= 0x20 && *c < 0x7f);
    }
    for (unsigned i = 0; i < LUKS_SLOTS; i++) {
        const struct luks_slot *s = &h->slots[i];
        uint64_t from = (uint64_t)s->sector * SECTOR_BYTES;

        check(!s->active || (s->iterations > 0 &&
                             range_inside(from, luks_material_bytes(h), room)));
    }
    unlock(h);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    unsigned char head[LUKS_HEADER_BYTES] = {0};
    CLEANUP_ERROR struct error *err = NULL;
    struct luks_header h;
    uint32_t room;

    if (size < sizeof(room)) {
        return 0;
    }
    memcpy(&room, data, sizeof(room));
    room = le32toh(room);
    memcpy(head, data + sizeof(room),
           min_u64(size - sizeof(room), sizeof(head)));
    int r = luks_parse(head, room, &h, &err);
    if (r < 0) {
        check_error(err, r);
    } else {
        check_header(&h, room);
    }
    return 0;
}
