/* SPDX-License-Identifier: BSD-3-Clause */

/* Options as text.  Text that is accepted is a JSON object that reads back as
 * itself.  Text that is refused gets a reason, in one printable line. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "core/opts.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/options.h"

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

static void check_object(const json_t *object)
{
    CLEANUP_FREE char *text = json_dumps(object, JSON_COMPACT);
    CLEANUP_ERROR struct error *err = NULL;
    struct opts *o = opts_new(object);
    const char *driver = NULL;
    uint64_t n = 0;
    bool b = false;

    check(json_is_object(object) && text && o);
    CLEANUP_JSON json_t *again = json_loads(text, 0, NULL);
    check(json_equal(object, again));

    (void)opts_str(o, "driver", &driver, NULL);
    (void)opts_bool(o, "cache.direct", &b, NULL);
    (void)opts_uint(o, "file.offset", 1000, &n, NULL);
    check(n <= 1000);
    int r = opts_end(o, "this", &err);
    if (r < 0) {
        check_error(err, r);
    }
    opts_free(o);
}

static void check_parse(const char *text, const char *implied)
{
    CLEANUP_JSON json_t *object = NULL;
    CLEANUP_ERROR struct error *err = NULL;
    int r = options_parse(text, implied, &object, &err);

    if (r < 0) {
        check_error(err, r);
    } else {
        check_object(object);
    }
}

static void check_image(const char *text, const char *format)
{
    CLEANUP_JSON json_t *object = NULL;
    CLEANUP_ERROR struct error *err = NULL;
    int r = options_from_image(text, format, &object, &err);

    if (r < 0) {
        check_error(err, r);
    } else {
        check_object(object);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    CLEANUP_FREE char *text = malloc(size + 1);

    if (!text) {
        return 0;
    }
    if (size > 0) {
        memcpy(text, data, size);
    }
    text[size] = '\0';
    check_parse(text, NULL);
    check_parse(text, "driver");
    check_image(text, NULL);
    check_image(text, "qcow2");
    return 0;
}
