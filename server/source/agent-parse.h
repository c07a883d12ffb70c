/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_SOURCE_AGENT_PARSE_H
#define NBDELTA_SERVER_SOURCE_AGENT_PARSE_H

/*
 * What a guest's agent sends.  The guest may be hostile, and a channel may hold
 * what somebody before us was answered.
 *
 *     rubbish... 0xFF {"return": ID}\n {"return": 3}\n
 *     \--- skipped ---/ \-- sync --/   \-- reply --/
 *
 * A sync that does not have our ID is rubbish, too.
 */
#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define AGENT_LINE_MAX 65536

struct agent_parser {
    enum { AGENT_SKIP, AGENT_SYNC, AGENT_REPLY } state;
    int64_t id;
    size_t length;
    char line[AGENT_LINE_MAX];
};

/* Wait for the answer to guest-sync-delimited with this id. */
void agent_parser_expect(struct agent_parser *p, int64_t id);

/*
 * Take one byte.  1: the answer to the sync has come; 2: *reply is the reply
 * after it, a new reference to an object; 0: more is needed; -EPROTO: that is
 * no reply.
 */
int agent_parser_take(struct agent_parser *p, unsigned char byte,
                      json_t **reply);

#endif /* NBDELTA_SERVER_SOURCE_AGENT_PARSE_H */
