/* SPDX-License-Identifier: BSD-3-Clause */

/* Manifests of backup points.  Since a hash protects them, each input is read
 * twice: as it is, and signed.  What is taken is written as the same bytes,
 * has a name for each disk that stays in the directory, and no circles. */
#include <jansson.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "sign.h"
#include "store/manifest.h"

static void check_taken(const struct manifest *m, const char *text,
                        size_t length)
{
    CLEANUP_FREE char *again = NULL;

    check(manifest_text(m, &again, NULL) == 0);
    check(strlen(again) == length && memcmp(again, text, length) == 0);
    check(point_name_valid(m->name));
    for (unsigned i = 0; i < m->count; i++) {
        check(!strchr(m->disks[i].name, '/') && m->disks[i].name[0] != '.');
        check(strcmp(m->disks[i].parent, m->name) < 0);
        check(manifest_find(m, m->disks[i].name) == &m->disks[i]);
    }
}

static void read_text(const char *text, size_t length)
{
    CLEANUP_MANIFEST struct manifest *m = NULL;
    CLEANUP_ERROR struct error *err = NULL;
    int r = manifest_parse(text, length, &m, &err);

    if (r == 0) {
        check_taken(m, text, length);
    } else {
        check(!m && err && error_code(err) == -r);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    read_text((const char *)data, size);
    CLEANUP_JSON json_t *j = json_loadb((const char *)data, size, 0, NULL);
    CLEANUP_FREE char *text = sign_manifest(j);
    if (text) {
        read_text(text, strlen(text));
    }
    return 0;
}
