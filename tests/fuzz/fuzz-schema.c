/* SPDX-License-Identifier: BSD-3-Clause */

/* What a monitor says of its commands.  Help about each of them ends, and is
 * not longer than its size allows. */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "cli/qmp-help.h"
#include "client/schema.h"
#include "nbdelta/cleanup.h"

static void check(bool ok)
{
    if (!ok) {
        abort();
    }
}

static void print_one(const struct schema *s, const char *name, size_t size)
{
    char *text = NULL;
    size_t len = 0;
    FILE *f = open_memstream(&text, &len);
    struct nearest near;

    if (f) {
        (void)qmp_help_print(s, name, f, &near);
        (void)fclose(f);
        /* A member takes a line, of at most three names. */
        check(len < 4096 + 1000 * size);
    }
    free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    CLEANUP_JSON json_t *list = json_loadb((const char *)data, size,
                                           JSON_DECODE_ANY, NULL);
    struct schema s = SCHEMA_INIT;
    const char *unknown;
    struct nearest near;
    const char *name;
    json_t *entry;

    if (list && schema_take(&s, list, NULL) == 0) {
        json_object_foreach (s.entries, name, entry) {
            print_one(&s, name, size);
            (void)qmp_help_misspelt(&s, name, entry, &unknown, &near);
        }
        print_one(&s, "x", size);
    }
    schema_free(&s);
    return 0;
}
