/* SPDX-License-Identifier: BSD-3-Clause */

/*
 * A monitor's input, up to where a command would run.  For any input, each
 * value or error is delivered once, however the bytes are cut into pieces, and
 * every refusal makes a reply that can be sent.  The first byte says how the
 * rest is cut.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "commands/table.h"
#include "daemon.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "qmp/parse.h"

static struct daemon server = {.service = &qmp_service};

static void check(bool ok)
{
    if (!ok) {
        abort();
    }
}

struct tally {
    size_t values;
    size_t errors;
};

static void check_reply(const json_t *request, enum qmp_class class,
                        const char *why)
{
    CLEANUP_JSON json_t *reply = qmp_error_reply(json_object_get(request, "id"),
                                                 class, why);
    CLEANUP_FREE char *text = NULL;
    size_t len = 0;

    check(reply);
    text = qmp_to_text(reply, &len);
    check(text && strlen(text) == len && len > 2);
    check(!strstr(text, "\"\\u0000")); /* the mark of a wide integer */
    for (size_t i = 0; i + 2 < len; i++) {
        check((unsigned char)text[i] >= 0x20 && (unsigned char)text[i] < 0x80);
    }
}

static void on_value(json_t *value, const char *why, void *opaque)
{
    struct tally *t = opaque;

    if (!value) {
        t->errors++;
        check_reply(NULL, QMP_GENERIC_ERROR, why);
        return;
    }
    t->values++;
    for (unsigned i = 0; i < 4; i++) {
        CLEANUP_ERROR struct error *err = NULL;
        struct qmp_state state = {.negotiated = i & 1, .oob = i & 2};
        struct qmp_call call = {.daemon = &server, .state = &state};
        const struct qmp_command *cmd = NULL;

        if (qmp_check_request(value, &call, &cmd, &err) < 0) {
            check_reply(value, call.class, error_message(err));
        } else {
            check(cmd);
        }
    }
}

static struct tally parse(const uint8_t *data, size_t size, size_t step)
{
    struct tally t = {0, 0};
    struct qmp_parser *p = qmp_parser_new(&qmp_limits_stranger, on_value, &t);

    check(p);
    for (size_t i = 0; i < size; i += step) {
        qmp_parser_feed(p, data + i, size - i < step ? size - i : step);
    }
    qmp_parser_free(p);
    return t;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct tally whole;
    struct tally cut;

    if (size < 2) {
        return 0;
    }
    whole = parse(data + 1, size - 1, size);
    cut = parse(data + 1, size - 1, (size_t)(data[0] % 32) + 1);
    check(whole.values == cut.values && whole.errors == cut.errors);
    return 0;
}
