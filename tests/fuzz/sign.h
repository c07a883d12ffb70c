/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_FUZZ_SIGN_H
#define NBDELTA_FUZZ_SIGN_H

/* Manifests get the hash that they should have, so that what is behind it is
 * reached. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "nbdelta/cleanup.h"
#include "store/manifest.h"

static inline void check(bool ok)
{
    if (!ok) {
        abort();
    }
}

/* The text of the manifest @j, which is changed, with its hash; free it.  NULL:
 * @j is no object. */
static inline char *sign_manifest(json_t *j)
{
    char hash[HASH_TEXT_MAX];
    char *out = NULL;

    if (!json_is_object(j)) {
        return NULL;
    }
    (void)json_object_del(j, "sha256");
    CLEANUP_FREE char *plain = json_dumps(j, JSON_INDENT(2));
    check(plain && hash_of(plain, strlen(plain), hash, NULL) == 0);
    check(json_object_set_new(j, "sha256", json_string(hash)) == 0);
    CLEANUP_FREE char *all = json_dumps(j, JSON_INDENT(2));
    check(all && asprintf(&out, "%s\n", all) > 0);
    return out;
}

#endif /* NBDELTA_FUZZ_SIGN_H */
