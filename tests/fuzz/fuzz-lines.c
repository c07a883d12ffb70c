/* SPDX-License-Identifier: BSD-3-Clause */

/*
 * Lines of a person at a monitor, in pieces of any size; and names of images of
 * Ceph.  The first byte is the size of a piece, the rest is given to both.
 *
 * Lines have the same bytes however they came (a piece that ends between CR and
 * LF makes an empty line more), and a request has its line whole.  A name
 * that is taken becomes options, which have a name that becomes the same ones.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "args.h"
#include "core/rbd-name.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "qmp/human.h"

static void check(bool ok)
{
    if (!ok) {
        abort();
    }
}

static void check_line(const char *line)
{
    CLEANUP_JSON json_t *request = human_request(line);
    const json_t *args = json_object_get(request, "arguments");
    const char *command = member_str(args, "command-line");

    check(strlen(line) <= HUMAN_LINE_MAX);
    check(!request || member_str(request, "execute"));
    check(!command || strcmp(command, line) == 0);
}

/* Feed in pieces of @piece bytes; returns how many bytes all lines have. */
static size_t feed(const char *data, size_t size, size_t piece)
{
    static struct human h;
    size_t bytes = 0;

    memset(&h, 0, sizeof(h));
    for (size_t at = 0; at < size;) {
        size_t len = size - at < piece ? size - at : piece;
        bool whole = false;
        size_t taken = human_feed(&h, data + at, len, &whole);

        check(taken > 0 && taken <= len && (whole || taken == len));
        if (whole) {
            bytes += strlen(h.line);
            check_line(h.line);
        }
        at += taken;
    }
    return bytes;
}

static void check_name(const char *text)
{
    CLEANUP_ERROR struct error *err = NULL;
    CLEANUP_JSON json_t *options = NULL;
    CLEANUP_JSON json_t *again = NULL;

    if (!rbd_is_name(text)) {
        return;
    }
    int r = rbd_name_parse(text, &options, &err);
    if (r < 0) {
        check(err && error_code(err) == -r && error_message(err)[0] != '\0');
        return;
    }
    /* No image has an empty name, and not all that is read can be written. */
    const char *image = member_str(options, "image");
    CLEANUP_FREE char *name = rbd_name_of(options);
    if (name && rbd_is_name(name) && image && *image) {
        check(rbd_name_parse(name, &again, NULL) == 0);
        CLEANUP_FREE char *same = rbd_name_of(again);
        check(same && strcmp(same, name) == 0);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 2) {
        return 0;
    }
    const char *text = (const char *)data + 1;
    check(feed(text, size - 1, (size_t)data[0] + 1) ==
          feed(text, size - 1, size - 1));
    CLEANUP_FREE char *name = strndup(text, size - 1);
    check(name != NULL);
    check_name(name);
    return 0;
}
