/* SPDX-License-Identifier: BSD-3-Clause */
/* Parsing the names of NBD exports: URIs and nbd:HOST:PORT. */
#include "core/remote-name.h"

#include <errno.h>
#include <string.h>

#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"

enum transport { OVER_TCP, OVER_UNIX, OVER_VSOCK };

static const struct scheme {
    const char *prefix;
    enum transport transport;
    bool tls;
} schemes[] = {
    {"nbd://", OVER_TCP, false},       {"nbd+tcp://", OVER_TCP, false},
    {"nbd+unix://", OVER_UNIX, false}, {"nbd+vsock://", OVER_VSOCK, false},
    {"nbds://", OVER_TCP, true},       {"nbds+tcp://", OVER_TCP, true},
    {"nbds+unix://", OVER_UNIX, true}, {"nbds+vsock://", OVER_VSOCK, true},
};

#define OLD_PREFIX "nbd:"
#define OLD_EXPORT ":exportname="

static const struct scheme *find_scheme(const char *text)
{
    for (size_t i = 0; i < ARRAY_SIZE(schemes); i++) {
        if (strncmp(text, schemes[i].prefix, strlen(schemes[i].prefix)) == 0) {
            return &schemes[i];
        }
    }
    return NULL;
}

bool remote_is_name(const char *text)
{
    return find_scheme(text) ||
           strncmp(text, OLD_PREFIX, strlen(OLD_PREFIX)) == 0;
}

/* --- URIs --- */

/* What is being taken apart, for error texts. */
struct name {
    const char *text;
    json_t *options;
    struct error **errp;
};

static int bad(const struct name *nm, const char *why)
{
    return error_set(nm->errp, EINVAL, "No valid URL specified: '%s' %s",
                     nm->text, why);
}

static int hex(char c)
{
    if (c >= '0' && c <= '9') {
        return c - '0';
    }
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* The @len bytes at @p with each %XX decoded; NULL: one is wrong. */
static json_t *unescape(const char *p, size_t len)
{
    CLEANUP_FREE char *out = malloc(len + 1);
    size_t n = 0;

    for (size_t i = 0; out && i < len; i++) {
        int c = (unsigned char)p[i];

        if (c == '%') {
            int high = i + 2 < len ? hex(p[i + 1]) : -1;
            int low = i + 2 < len ? hex(p[i + 2]) : -1;

            if (high < 0 || low < 0 || (c = high * 16 + low) == 0) {
                return NULL;
            }
            i += 2;
        }
        out[n++] = (char)c;
    }
    return out ? json_stringn(out, n) : NULL;
}

static int put_member(const struct name *nm, json_t *object, const char *key,
                      const char *p, size_t len)
{
    json_t *value = unescape(p, len);

    if (!value) {
        return bad(nm, "has a wrong escape or is not UTF-8");
    }
    return json_object_set_new(object, key, value) < 0 ? error_nomem(nm->errp)
                                                       : 0;
}

/* "socket=PATH&tls-certificates=DIR" */
static int parse_query(const struct name *nm, const struct scheme *s,
                       json_t *server, const char *p)
{
    static const char *const own[] = {"tls-certificates", "tls-psk-file"};

    while (*p) {
        size_t len = strcspn(p, "&");
        const char *equals = memchr(p, '=', len);
        size_t key = equals ? (size_t)(equals - p) : len;
        const char *value = equals ? equals + 1 : p + len;
        size_t value_len = (size_t)(p + len - value);
        int r = 1;

        if (s->transport == OVER_UNIX && key == 6 &&
            strncmp(p, "socket", 6) == 0) {
            r = put_member(nm, server, "path", value, value_len);
        }
        for (size_t i = 0; s->tls && r > 0 && i < ARRAY_SIZE(own); i++) {
            if (key == strlen(own[i]) && strncmp(p, own[i], key) == 0) {
                r = put_member(nm, nm->options, own[i], value, value_len);
            }
        }
        if (r != 0) {
            return r > 0 ? bad(nm, "has a parameter that is not known") : r;
        }
        p += len + (p[len] == '&');
    }
    return 0;
}

/* "[USER@]HOST[:PORT]", "[USER@]CID[:PORT]" */
static int parse_authority(const struct name *nm, const struct scheme *s,
                           json_t *server, const char *p, size_t len)
{
    const char *at = memchr(p, '@', len);

    if (at) {
        if (!s->tls) {
            return bad(nm, "has a user name, which is for TLS only");
        }
        int r = put_member(nm, nm->options, "tls-username", p,
                           (size_t)(at - p));
        if (r < 0) {
            return r;
        }
        len -= (size_t)(at + 1 - p);
        p = at + 1;
    }
    if (s->transport == OVER_UNIX) {
        return len > 0 ? bad(nm, "has a host, and a Unix socket") : 0;
    }
    const char *end = p + len;
    const char *host = p;
    if (len > 0 && *p == '[') {
        host = p + 1;
        p = memchr(p, ']', len);
        if (!p) {
            return bad(nm, "has a '[' without a ']'");
        }
        len = (size_t)(p - host);
        p++;
    } else {
        const char *colon = memchr(p, ':', len);
        p = colon ? colon : end;
        len = (size_t)(p - host);
    }
    if (p < end && *p != ':') {
        return bad(nm, "has something behind its host");
    }
    p += p < end;
    if (len == 0) {
        return bad(nm, "has no host");
    }
    bool vsock = s->transport == OVER_VSOCK;
    int r = put_member(nm, server, vsock ? "cid" : "host", host, len);
    if (r == 0) {
        r = p < end ? put_member(nm, server, "port", p, (size_t)(end - p))
                    : put_member(nm, server, "port", REMOTE_PORT,
                                 strlen(REMOTE_PORT));
    }
    return r;
}

static int parse_uri(const struct name *nm, const struct scheme *s,
                     json_t *server)
{
    static const char *const types[] = {"inet", "unix", "vsock"};
    const char *p = nm->text + strlen(s->prefix);
    size_t authority = strcspn(p, "/?");
    const char *path = p + authority;
    const char *query = path + strcspn(path, "?");

    if (json_object_set_new(server, "type", json_string(types[s->transport])) <
            0 ||
        (s->tls && json_object_set_new(nm->options, "tls", json_true()) < 0)) {
        return error_nomem(nm->errp);
    }
    int r = parse_authority(nm, s, server, p, authority);
    if (r == 0 && query > path + 1) {
        r = put_member(nm, nm->options, "export", path + 1,
                       (size_t)(query - path) - 1);
    }
    if (r == 0 && *query) {
        r = parse_query(nm, s, server, query + 1);
    }
    if (r == 0 && s->transport == OVER_UNIX &&
        !json_object_get(server, "path")) {
        r = bad(nm, "has no socket");
    }
    return r;
}

/* --- nbd:HOST:PORT and nbd:unix:PATH --- */

static int parse_host_port(const char *p, size_t len, const char *text,
                           json_t *server, struct error **errp)
{
    const char *colon = len > 0 ? memrchr(p, ':', len) : NULL;
    size_t host = colon ? (size_t)(colon - p) : 0;

    if (!colon || colon + 1 == p + len ||
        (*p == '[' && (host < 2 || p[host - 1] != ']'))) {
        return error_set(errp, EINVAL,
                         "'%s' is neither nbd:unix:PATH nor nbd:HOST:PORT",
                         text);
    }
    bool braces = *p == '[';
    return json_object_set_new(server, "type", json_string("inet")) |
                   json_object_set_new(
                       server, "host",
                       json_stringn(p + braces, host - (braces ? 2 : 0))) |
                   json_object_set_new(server, "port",
                                       json_stringn(colon + 1, len - host - 1))
               ? error_set(errp, EINVAL, "'%s' is not UTF-8 text", text)
               : 0;
}

static int parse_old(const struct name *nm, json_t *server)
{
    const char *p = nm->text + strlen(OLD_PREFIX);
    const char *export = strstr(p, OLD_EXPORT);
    size_t len = export ? (size_t)(export - p) : strlen(p);

    if (export &&
        json_object_set_new(nm->options, "export",
                            json_string(export + strlen(OLD_EXPORT))) < 0) {
        return bad(nm, "is not UTF-8 text");
    }
    /* In "unix:exportname=" the colon belongs to what follows, as in QEMU. */
    if (len < 5 || strncmp(p, "unix:", 5) != 0) {
        return parse_host_port(p, len, nm->text, server, nm->errp);
    }
    return json_object_set_new(server, "type", json_string("unix")) |
                   json_object_set_new(server, "path",
                                       json_stringn(p + 5, len - 5))
               ? bad(nm, "is not UTF-8 text")
               : 0;
}

int remote_name_parse(const char *text, json_t **options, struct error **errp)
{
    const struct scheme *s = find_scheme(text);
    CLEANUP_JSON json_t *all = json_object();
    json_t *server = json_object();

    if (!all || json_object_set_new(all, "server", server) < 0) {
        return error_nomem(errp);
    }
    const struct name nm = {text, all, errp};
    if (!remote_is_name(text)) {
        return bad(&nm, "begins with no scheme of NBD");
    }
    int r = s ? parse_uri(&nm, s, server) : parse_old(&nm, server);
    if (r == 0) {
        *options = json_incref(all);
    }
    return r;
}
