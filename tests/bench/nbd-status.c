/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * List all of a metadata context, one request at a time, as a backup program
 * does, with nothing of a client's own costs.
 *
 *   nbd-status ADDRESS EXPORT CONTEXT
 *
 * It prints the seconds, and how many extents there were: neighbours that are
 * alike count as one, also across replies, so all servers have the same number.
 */
#include "nbd-raw.h"

#include <stdio.h>

#define LENGTH_MAX UINT32_C(0xffff0000) /* of a request */

enum { CHUNK_STATUS = 5, CHUNK_ERROR = 0x8000, CHUNK_DONE = 1 };

static struct raw server;
static char buffer[8 << 20];

/* One request and its reply: returns how many bytes were described. */
static uint64_t ask(uint64_t offset, uint32_t length, uint64_t *extents,
                    uint32_t *last)
{
    char head[RAW_REQUEST_SIZE];
    uint64_t told = 0;

    (void)raw_request(head, RAW_STATUS, offset, offset, length);
    raw_put(&server, head, sizeof(head));
    do {
        raw_get(&server, head, RAW_CHUNK_SIZE);
        uint32_t bytes = raw_load32(head + 16);
        uint16_t kind = raw_load16(head + 6);
        if (kind & CHUNK_ERROR || bytes > sizeof(buffer)) {
            raw_fail("a request failed", NULL);
        }
        raw_get(&server, buffer, bytes);
        for (uint32_t at = 4; kind == CHUNK_STATUS && at < bytes; at += 8) {
            uint32_t flags = raw_load32(buffer + at + 4);
            told += raw_load32(buffer + at);
            *extents += flags != *last;
            *last = flags;
        }
    } while (!(raw_load16(head + 4) & CHUNK_DONE));
    return told;
}

int main(int argc, char **argv)
{
    uint64_t extents = 0;
    uint32_t last = UINT32_MAX;

    if (argc != 4) {
        raw_fail("usage", "nbd-status ADDRESS EXPORT CONTEXT");
    }
    raw_open(&server, argv[1], argv[2], argv[3]);
    double begin = raw_now();
    for (uint64_t at = 0; at < server.size;) {
        uint64_t left = server.size - at;
        uint64_t told = ask(at, left < LENGTH_MAX ? (uint32_t)left : LENGTH_MAX,
                            &extents, &last);
        if (told == 0) {
            raw_fail("an empty reply", NULL);
        }
        at += told;
    }
    (void)printf("%.6f %lu\n", raw_now() - begin, (unsigned long)extents);
    return 0;
}
