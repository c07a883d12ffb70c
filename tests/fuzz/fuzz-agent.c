/* SPDX-License-Identifier: BSD-3-Clause */

/* What a guest's agent sends.  A reply is an object, and comes after the answer
 * to our sync only. */
#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>

#include "source/agent-parse.h"

#define ID 5

static void check(bool ok)
{
    if (!ok) {
        abort();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct agent_parser p;
    bool synced = false;

    agent_parser_expect(&p, ID);
    for (size_t i = 0; i < size; i++) {
        json_t *reply = NULL;
        int r = agent_parser_take(&p, data[i], &reply);

        check(r == 0 || r == 1 || r == 2 || r == -EPROTO);
        check((r == 2) == json_is_object(reply));
        check(r != 2 || synced);
        json_decref(reply);
        synced = (synced || r == 1) && r != -EPROTO;
        if (r == 2 || r == -EPROTO) {
            agent_parser_expect(&p, ID);
            synced = false;
        }
    }
    return 0;
}
