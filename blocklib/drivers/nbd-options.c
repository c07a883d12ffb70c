/* SPDX-License-Identifier: BSD-3-Clause */
/* Options of an nbd node: taking them, and making its file name of them. */
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "core/opts.h"
#include "core/remote-name.h"
#include "drivers/nbd.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/fdname.h"
#include "nbdelta/tls-creds.h"

#define NAME_MAX_BYTES 4096 /* of an export or a context, in the protocol */
#define SECOND         UINT64_C(1000000000)
/* In seconds, for ever. */
#define DELAY_MAX UINT32_MAX

/* A copy of a string option; NULL stays when it is absent. */
static int take_string(struct opts *opts, const char *key, char **copy,
                       struct error **errp)
{
    const char *text = NULL;
    int r = opts_str(opts, key, &text, errp);

    if (r == 0 && text) {
        free(*copy);
        *copy = strdup(text);
        r = *copy ? 0 : error_nomem(errp);
    }
    return r;
}

/* --- Where the server is --- */

static int missing(const char *key, struct error **errp)
{
    return error_set(errp, EINVAL, "Parameter '%s' is missing", key);
}

static int take_inet(struct opts *opts, struct remote_address *a,
                     struct error **errp)
{
    bool v4 = true;
    bool v6 = true;
    bool keep_alive;
    uint64_t to;
    int r;

    bool v4_given = opts_has(opts, "server.ipv4");
    bool v6_given = opts_has(opts, "server.ipv6");
    if ((r = take_string(opts, "server.host", &a->host, errp)) < 0 ||
        (r = take_string(opts, "server.port", &a->port, errp)) < 0 ||
        (r = opts_bool(opts, "server.ipv4", &v4, errp)) < 0 ||
        (r = opts_bool(opts, "server.ipv6", &v6, errp)) < 0 ||
        /* For QEMU's sake: it is always on. */
        (r = opts_bool(opts, "server.keep-alive", &keep_alive, errp)) < 0 ||
        /* "to" is for servers, which listen. */
        (r = opts_uint(opts, "server.to", UINT16_MAX, &to, errp)) < 0) {
        return r;
    }
    if (!a->host || !a->port) {
        return missing(a->host ? "server.port" : "server.host", errp);
    }
    if (!v4 && !v6) {
        return error_set(errp, EINVAL,
                         "Cannot disable IPv4 and IPv6 at same "
                         "time");
    }
    if (!v6 || (v4_given && v4 && !v6_given)) {
        a->family = AF_INET;
    } else if (!v4 || (v6_given && !v4_given)) {
        a->family = AF_INET6;
    }
    return 0;
}

static int take_unix(struct opts *opts, struct remote_address *a,
                     struct error **errp)
{
    int r;

    a->tight = true;
    if ((r = take_string(opts, "server.path", &a->host, errp)) < 0 ||
        (r = opts_bool(opts, "server.abstract", &a->abstract, errp)) < 0 ||
        (r = opts_bool(opts, "server.tight", &a->tight, errp)) < 0) {
        return r;
    }
    return a->host ? 0 : missing("server.path", errp);
}

/* Numbers of sockets are strings, as in QEMU. */
static int take_u32(struct opts *opts, const char *key, uint32_t *val,
                    struct error **errp)
{
    const char *text = NULL;
    char *end = NULL;
    int r = opts_str(opts, key, &text, errp);

    if (r < 0 || !text) {
        return r < 0 ? r : missing(key, errp);
    }
    unsigned long long n = strtoull(text, &end, 10);
    if (!isdigit((unsigned char)text[0]) || *end || n > UINT32_MAX) {
        return error_set(errp, EINVAL,
                         "option '%s' must be a number up to %" PRIu32, key,
                         UINT32_MAX);
    }
    *val = (uint32_t)n;
    return 0;
}

static int take_vsock(struct opts *opts, struct remote_address *a,
                      struct error **errp)
{
    int r = take_u32(opts, "server.cid", &a->cid, errp);

    return r < 0 ? r : take_u32(opts, "server.port", &a->vport, errp);
}

static int take_fd(struct opts *opts, struct remote_address *a,
                   struct error **errp)
{
    const char *text = NULL;
    int r = opts_str(opts, "server.str", &text, errp);

    if (r < 0) {
        return r;
    }
    if (!text) {
        return missing("server.str", errp);
    }
    a->fd = fd_named_socket(text, true, errp);
    if (a->fd < 0) {
        return a->fd;
    }
    int flags = fcntl(a->fd, F_GETFL);
    if (flags < 0 || fcntl(a->fd, F_SETFL, flags | O_NONBLOCK) < 0) {
        return error_set(errp, errno, "descriptor '%s': %s", text,
                         strerror(errno));
    }
    return 0;
}

static const char *const types[] = {"inet", "unix", "vsock", "fd", NULL};

static const struct option inet_options[] = {
    OPTION("host", STR, .required = true),
    OPTION("port", STR, .required = true),
    OPTION("ipv4", BOOL),
    OPTION("ipv6", BOOL),
    OPTION("keep-alive", BOOL),
    OPTION("to", UINT),
    OPTIONS_END,
};

static const struct option unix_options[] = {
    OPTION("path", STR, .required = true),
    OPTION("abstract", BOOL),
    OPTION("tight", BOOL),
    OPTIONS_END,
};

static const struct option vsock_options[] = {
    OPTION("cid", STR, .required = true),
    OPTION("port", STR, .required = true),
    OPTIONS_END,
};

static const struct option fd_options[] = {
    OPTION("str", STR, .required = true),
    OPTIONS_END,
};

static const struct option *const address_options[] = {
    inet_options,
    unix_options,
    vsock_options,
    fd_options,
};

const struct option remote_node_options[] = {
    OPTION("connections", UINT),
    OPTION("export", STR),
    OPTION("host", STR),
    OPTION("open-timeout", UINT, .type_name = "uint64"),
    OPTION("path", STR),
    OPTION("port", STR),
    OPTION("reconnect-delay", UINT, .type_name = "uint64"),
    OPTION("server", UNION, .words = types, .cases = address_options),
    OPTION("tls", BOOL),
    OPTION("tls-certificates", STR),
    OPTION("tls-creds", STR),
    OPTION("tls-hostname", STR),
    OPTION("tls-psk-file", STR),
    OPTION("tls-username", STR),
    OPTION("x-dirty-bitmap", STR, .features = option_unstable),
    OPTIONS_END,
};

static int take_server(struct opts *opts, struct remote_address *a,
                       struct error **errp)
{
    unsigned type = 0;

    if (!opts_has(opts, "server")) {
        return error_set(errp, EINVAL, "NBD server address missing");
    }
    if (!opts_has(opts, "server.type")) {
        return missing("server.type", errp);
    }
    int r = opts_enum(opts, "server.type", types, &type, errp);
    if (r < 0) {
        return r;
    }
    a->type = (enum remote_type)type;
    switch (a->type) {
    case REMOTE_INET:
        return take_inet(opts, a, errp);
    case REMOTE_UNIX:
        return take_unix(opts, a, errp);
    case REMOTE_VSOCK:
        return take_vsock(opts, a, errp);
    case REMOTE_FD:
        break;
    }
    return take_fd(opts, a, errp);
}

/* QEMU's older options: path, or host and port. */
static int take_legacy(struct opts *opts, struct remote_address *a,
                       struct error **errp)
{
    char *path = NULL;
    int r;

    if ((r = take_string(opts, "path", &path, errp)) < 0 ||
        (r = take_string(opts, "host", &a->host, errp)) < 0 ||
        (r = take_string(opts, "port", &a->port, errp)) < 0) {
        free(path);
        return r;
    }
    if (path && a->host) {
        free(path);
        return error_set(errp, EINVAL,
                         "path and host may not be used at the same time");
    }
    if (a->port && !a->host) {
        free(path);
        return error_set(errp, EINVAL, "port may not be used without host");
    }
    a->type = path ? REMOTE_UNIX : REMOTE_INET;
    if (path) {
        a->host = path;
        a->tight = true;
    } else if (!a->port) {
        a->port = strdup(REMOTE_PORT);
    }
    return path || a->port ? 0 : error_nomem(errp);
}

static int take_address(struct opts *opts, struct remote_address *a,
                        struct error **errp)
{
    bool legacy = opts_has(opts, "path") || opts_has(opts, "host") ||
                  opts_has(opts, "port");

    if (!legacy) {
        return take_server(opts, a, errp);
    }
    return opts_has(opts, "server")
               ? error_set(errp, EINVAL,
                           "Cannot use 'server' and path/host/port at the "
                           "same time")
               : take_legacy(opts, a, errp);
}

/* --- TLS --- */

bool remote_verifies(const struct remote_options *o)
{
    if (!o->tls || o->tls_psk_file || (o->creds && o->creds->kind == TLS_PSK)) {
        return false;
    }
    return !o->creds || o->creds->verify_peer;
}

/* Refuse options that libnbd cannot do: they must not be left out in
 * silence. */
static int check_tls(const struct remote_options *o, struct error **errp)
{
    const struct tls_creds *c = o->creds;
    const struct remote_address *a = &o->address;

    if (c && (c->kind == TLS_ANON || c->priority || c->passwordid)) {
        return error_set(errp, ENOTSUP,
                         "TLS credentials '%s': %s cannot be used for nbd "
                         "nodes",
                         c->id,
                         c->kind == TLS_ANON ? "anonymous ones"
                         : c->priority       ? "such with a 'priority'"
                                             : "such with a 'passwordid'");
    }
    if (!remote_verifies(o)) {
        return 0;
    }
    if (a->type != REMOTE_INET || a->family != AF_UNSPEC) {
        return error_set(errp, ENOTSUP,
                         "the certificate of an NBD server can be verified "
                         "only where it is reached by a host name, without "
                         "'ipv4' and 'ipv6'");
    }
    if (o->tls_hostname && strcmp(o->tls_hostname, a->host) != 0) {
        return error_set(errp, ENOTSUP,
                         "tls-hostname '%s' must be the host that is connected "
                         "to, '%s'",
                         o->tls_hostname, a->host);
    }
    return 0;
}

static int take_tls(struct node *n, struct opts *opts, struct remote_options *o,
                    struct error **errp)
{
    const char *id = NULL;
    int r;

    if ((r = opts_bool(opts, "tls", &o->tls, errp)) < 0 ||
        (r = opts_str(opts, "tls-creds", &id, errp)) < 0 ||
        (r = take_string(opts, "tls-hostname", &o->tls_hostname, errp)) < 0 ||
        (r = take_string(opts, "tls-username", &o->tls_username, errp)) < 0 ||
        (r = take_string(opts, "tls-certificates", &o->tls_certificates,
                         errp)) < 0 ||
        (r = take_string(opts, "tls-psk-file", &o->tls_psk_file, errp)) < 0) {
        return r;
    }
    bool keys = o->tls_username || o->tls_certificates || o->tls_psk_file;
    if (id && keys) {
        return error_set(errp, EINVAL,
                         "tls-creds cannot be used together with "
                         "tls-username, tls-certificates and tls-psk-file");
    }
    if (id) {
        r = tls_creds_get(n->graph, id, false, &o->creds, errp);
    }
    o->tls |= id || keys;
    return r < 0 ? r : check_tls(o, errp);
}

/* --- All --- */

static int too_long(const char *what, struct error **errp)
{
    return error_set(errp, EINVAL, "%s too long to send to server", what);
}

static int take_context(struct opts *opts, struct remote_options *o,
                        struct error **errp)
{
    int r = take_string(opts, "x-dirty-bitmap", &o->context, errp);

    if (r == 0 && o->context && strlen(o->context) > NAME_MAX_BYTES) {
        return too_long("x-dirty-bitmap query", errp);
    }
    o->dirty_bitmap = o->context != NULL;
    if (r == 0 && !o->context) {
        o->context = strdup(LIBNBD_CONTEXT_BASE_ALLOCATION);
        r = o->context ? 0 : error_nomem(errp);
    }
    return r;
}

int remote_options_take(struct node *n, struct opts *opts,
                        struct remote_options *o, struct error **errp)
{
    uint64_t delay = 0;
    uint64_t timeout = 0;
    uint64_t connections = 1;
    int r;

    o->address.fd = -1;
    if ((r = take_address(opts, &o->address, errp)) < 0 ||
        (r = take_string(opts, "export", &o->export, errp)) < 0 ||
        (r = take_tls(n, opts, o, errp)) < 0 ||
        (r = take_context(opts, o, errp)) < 0 ||
        (r = opts_uint(opts, "reconnect-delay", DELAY_MAX, &delay, errp)) < 0 ||
        (r = opts_uint(opts, "open-timeout", DELAY_MAX, &timeout, errp)) < 0 ||
        (r = opts_uint(opts, "connections", REMOTE_CONNECTIONS_MAX,
                       &connections, errp)) < 0) {
        return r;
    }
    if (o->export && strlen(o->export) > NAME_MAX_BYTES) {
        return too_long("export name", errp);
    }
    o->delay_ns = delay * SECOND;
    o->open_ns = timeout * SECOND;
    o->connections = connections > 0 ? (unsigned)connections : 1;
    return 0;
}

void remote_options_free(struct remote_options *o)
{
    free(o->address.host);
    free(o->address.port);
    if (o->address.fd >= 0) {
        (void)close(o->address.fd);
    }
    free(o->export);
    free(o->context);
    tls_creds_put(o->creds);
    free(o->tls_hostname);
    free(o->tls_username);
    free(o->tls_certificates);
    free(o->tls_psk_file);
}

/* --- The file name --- */

/* @text, with characters that have a meaning in a URI as %XX; NULL: no
 * memory. */
static char *escape(const char *text)
{
    char *out = malloc(3 * strlen(text) + 1);
    char *at = out;

    for (; out && *text; text++) {
        unsigned char c = (unsigned char)*text;

        if (isalnum(c) || strchr("-._~/:@!$'()*+,;=", c)) {
            *at++ = (char)c;
        } else {
            at += sprintf(at, "%%%02X", c);
        }
    }
    if (out) {
        *at = '\0';
    }
    return out;
}

/* The json: name, of the options that say which export it is. */
static char *json_filename(const json_t *options)
{
    static const char *const keys[] = {
        "server",       "path",
        "host",         "port",
        "export",       "tls-creds",
        "tls-hostname", "tls",
        "tls-username", "tls-certificates",
        "tls-psk-file",
    };
    CLEANUP_JSON json_t *some = json_pack("{s:s}", "driver", "nbd");
    CLEANUP_FREE char *text = NULL;
    char *name;

    for (size_t i = 0; i < ARRAY_SIZE(keys); i++) {
        json_t *value = json_object_get(options, keys[i]);
        if (value && json_object_set(some, keys[i], value) < 0) {
            return NULL;
        }
    }
    text = some ? json_dumps(some, JSON_COMPACT) : NULL;
    return text && asprintf(&name, "json:%s", text) >= 0 ? name : NULL;
}

char *remote_filename(const struct remote_options *o, const json_t *options)
{
    const struct remote_address *a = &o->address;
    const char *host = a->host ? a->host : "";
    CLEANUP_FREE char *export = escape(o->export ? o->export : "");
    CLEANUP_FREE char *path = escape(host);
    const char *slash = o->export ? "/" : "";
    char *name = NULL;
    int len = -1;

    if (!export || !path) {
        return NULL;
    }
    if (a->type == REMOTE_UNIX && !a->abstract && (!o->tls || o->creds)) {
        len = asprintf(&name, "nbd+unix://%s%s?socket=%s", slash, export, path);
    } else if (a->type == REMOTE_INET && a->family == AF_UNSPEC &&
               (!o->tls || o->creds)) {
        bool v6 = strchr(host, ':') != NULL;
        len = asprintf(&name, "nbd://%s%s%s:%s%s%s", v6 ? "[" : "", host,
                       v6 ? "]" : "", a->port, slash, export);
    } else {
        return json_filename(options);
    }
    return len < 0 ? NULL : name;
}
