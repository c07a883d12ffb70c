/* SPDX-License-Identifier: BSD-3-Clause */

/* Names of remote exports.  A name that is taken says where to go, and means
 * the same when it is written again as a URI with everything escaped.  A name
 * that is refused gets a reason, in one printable line. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/opts.h"
#include "core/remote-name.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"

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

static const char *member(const json_t *object, const char *key)
{
    const char *s = json_string_value(json_object_get(object, key));

    check(s != NULL);
    return s;
}

/* "@before", then the member's bytes, each as %XX; nothing if there is none. */
static void put(FILE *f, const char *before, const json_t *object,
                const char *key, const char *after)
{
    if (!json_object_get(object, key)) {
        return;
    }
    (void)fputs(before, f);
    for (const char *s = member(object, key); *s; s++) {
        (void)fprintf(f, "%%%02x", (unsigned char)*s);
    }
    (void)fputs(after, f);
}

/* malloc()ed */
static char *uri_of(const json_t *o)
{
    const json_t *server = json_object_get(o, "server");
    const char *type = member(server, "type");
    bool is_unix = strcmp(type, "unix") == 0;
    bool inet = strcmp(type, "inet") == 0;
    char *uri = NULL;
    size_t len = 0;
    FILE *f = open_memstream(&uri, &len);

    check(f && (is_unix || inet || strcmp(type, "vsock") == 0));
    (void)fprintf(f, "nbd%s%s%s://", json_object_get(o, "tls") ? "s" : "",
                  inet ? "" : "+", inet ? "" : type);
    put(f, "", o, "tls-username", "@");
    if (!is_unix) {
        put(f, "", server, inet ? "host" : "cid", "");
        put(f, ":", server, "port", "");
    }
    put(f, "/", o, "export", "");
    (void)fputs("?", f);
    put(f, "socket=", server, is_unix ? "path" : "-", "&");
    put(f, "tls-certificates=", o, "tls-certificates", "&");
    put(f, "tls-psk-file=", o, "tls-psk-file", "&");
    check(fclose(f) == 0);
    return uri;
}

/* "nbd::10809" has no host, which no URI can say; and "nbd:h:1:exportname="
 * is the export "", which a URI leaves out. */
static bool has_uri(const json_t *o)
{
    const json_t *host = json_object_get(json_object_get(o, "server"), "host");

    return (!host || json_string_length(host) > 0) &&
           (!json_object_get(o, "export") || member(o, "export")[0]);
}

static void check_taken(const json_t *o)
{
    CLEANUP_JSON json_t *again = NULL;
    CLEANUP_FREE char *uri = uri_of(o);

    if (has_uri(o)) {
        check(remote_is_name(uri));
        check(remote_name_parse(uri, &again, NULL) == 0);
        check(json_equal(o, again));
    }
}

/* As the file name of a node, of any driver or of this one. */
static void check_node(const char *text, const char *driver, const char *key)
{
    CLEANUP_JSON json_t *o = json_pack("{s:s, s:s*}", key, text, "driver",
                                       driver);
    CLEANUP_JSON json_t *full = NULL;
    CLEANUP_ERROR struct error *err = NULL;
    int r = o ? options_expand(o, &full, &err) : 0;

    if (r < 0) {
        check_error(err, r);
    } else if (o) {
        check(json_is_object(full));
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    CLEANUP_FREE char *text = strndup((const char *)data, size);
    CLEANUP_JSON json_t *options = NULL;
    CLEANUP_ERROR struct error *err = NULL;

    check(text != NULL);
    int r = remote_name_parse(text, &options, &err);
    if (r < 0) {
        check_error(err, r);
    } else {
        check(remote_is_name(text));
        check_taken(options);
    }
    check_node(text, NULL, "filename");
    check_node(text, "nbd", "filename");
    check_node(text, "nbd", "uri");
    check_node(text, "blkdebug", "filename");
    return 0;
}
