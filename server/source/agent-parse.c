/* SPDX-License-Identifier: BSD-3-Clause */
/* What a guest's agent sends: see agent-parse.h. */
#include "source/agent-parse.h"

#include <errno.h>

#define DELIMITER 0xff

void agent_parser_expect(struct agent_parser *p, int64_t id)
{
    p->state = AGENT_SKIP;
    p->id = id;
    p->length = 0;
}

/* An object, or NULL. */
static json_t *parse_line(const struct agent_parser *p)
{
    json_t *j = json_loadb(p->line, p->length, JSON_REJECT_DUPLICATES, NULL);

    if (j && !json_is_object(j)) {
        json_decref(j);
        j = NULL;
    }
    return j;
}

static int end_sync(struct agent_parser *p)
{
    json_t *j = parse_line(p);
    const json_t *id = json_object_get(j, "return");
    bool ours = json_is_integer(id) && json_integer_value(id) == p->id;

    json_decref(j);
    p->state = ours ? AGENT_REPLY : AGENT_SKIP;
    p->length = 0;
    return ours;
}

static int end_reply(struct agent_parser *p, json_t **reply)
{
    if (p->length == 0) {
        return 0; /* an empty line */
    }
    *reply = parse_line(p);
    p->length = 0;
    return *reply ? 2 : -EPROTO;
}

int agent_parser_take(struct agent_parser *p, unsigned char byte,
                      json_t **reply)
{
    if (byte == DELIMITER && p->state != AGENT_REPLY) {
        p->state = AGENT_SYNC;
        p->length = 0;
        return 0;
    }
    if (p->state == AGENT_SKIP || byte == '\r') {
        return 0;
    }
    if (byte == '\n') {
        return p->state == AGENT_SYNC ? end_sync(p) : end_reply(p, reply);
    }
    if (p->length == sizeof(p->line)) {
        bool sync = p->state == AGENT_SYNC;
        p->state = AGENT_SKIP;
        return sync ? 0 : -EPROTO;
    }
    p->line[p->length++] = (char)byte;
    return 0;
}
