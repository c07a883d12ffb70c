/* SPDX-License-Identifier: BSD-3-Clause */

/* Files of authorization lists.  The first line is the identity that asks, the
 * rest is the file.  A file that is no list allows nobody.  Matching ends. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "objects/authz.h"

static void check(bool ok)
{
    if (!ok) {
        abort();
    }
}

static void write_file(const char *path, const uint8_t *data, size_t size)
{
    FILE *f = fopen(path, "w");

    check(f && fwrite(data, 1, size, f) == size);
    check(fclose(f) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static char path[] = "/tmp/fuzz-authz.XXXXXX";
    static int fd = -1;
    const uint8_t *eol = memchr(data, '\n', size);
    size_t len = eol ? (size_t)(eol - data) : size;
    CLEANUP_FREE char *who = strndup((const char *)data, len);
    struct authz_set *set = authz_set_new();

    if (fd < 0) {
        fd = mkstemp(path);
    }
    check(fd >= 0 && who && set);
    write_file(path, data + len, size - len);
    CLEANUP_JSON json_t *props = json_pack("{ss ss ss}", "qom-type",
                                           "authz-listfile", "id", "z",
                                           "filename", path);
    CLEANUP_ERROR struct error *err = NULL;
    if (authz_add(set, props, &err) < 0) {
        check(err && error_message(err)[0] != '\0');
        check(!authz_allows(set, "z", who));
    } else {
        (void)authz_allows(set, "z", who);
        check(!authz_allows(set, "z", NULL));
    }
    authz_set_free(set);
    (void)unlink(path);
    return 0;
}
