/* SPDX-License-Identifier: BSD-3-Clause */
/* Options of an rbd node: where its image is, and how to get there. */
#include <errno.h>
#include <nettle/base64.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/opts.h"
#include "core/rbd-name.h"
#include "core/secret.h"
#include "drivers/rbd.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"

static const char *const auth_words[] = {"cephx", "none", NULL};
static const char *const luks_words[] = {"luks", "luks2", NULL};

static const struct option server_options[] = {
    OPTION("host", STR, .required = true),
    OPTION("port", STR, .required = true),
    OPTIONS_END,
};

static const struct option encrypt_options[] = {
    OPTION("format", ENUM, .required = true, .words = luks_words),
    OPTION("key-secret", STR, .required = true),
    OPTIONS_END,
};

const struct option rbd_node_options[] = {
    OPTION(RBD_PAIRS, STR, .hidden = true),
    OPTION("auth-client-required", ENUMS, .words = auth_words),
    OPTION("conf", STR),
    OPTION("encrypt", OBJECT, .members = encrypt_options),
    OPTION("image", STR, .required = true),
    OPTION("key-secret", STR),
    OPTION("namespace", STR),
    OPTION("pool", STR, .required = true),
    OPTION("server", OBJECTS, .members = server_options),
    OPTION("snapshot", STR),
    OPTION("user", STR),
    OPTIONS_END,
};

/* --- Texts --- */

/* A copy of a string option; NULL stays when it is absent. */
static int take_string(struct opts *opts, const char *key, char **copy,
                       struct error **errp)
{
    const char *text = NULL;
    int r = opts_str(opts, key, &text, errp);

    if (r == 0 && text) {
        *copy = strdup(text);
        r = *copy ? 0 : error_nomem(errp);
    }
    return r;
}

static int take_needed(struct opts *opts, const char *key, char **copy,
                       struct error **errp)
{
    int r = take_string(opts, key, copy, errp);

    return r == 0 && !*copy
               ? error_set(errp, EINVAL, "Parameter '%s' is missing", key)
               : r;
}

/* Append @text to the list *@list, which @between parts. */
static int append(char **list, const char *between, const char *text,
                  struct error **errp)
{
    char *longer;

    if (asprintf(&longer, "%s%s%s", *list ? *list : "", *list ? between : "",
                 text) < 0) {
        return error_nomem(errp);
    }
    free(*list);
    *list = longer;
    return 0;
}

/* --- Lists --- */

static int take_host(json_t *server, char **mon_host, struct error **errp)
{
    const char *host = json_string_value(json_object_get(server, "host"));
    const char *port = json_string_value(json_object_get(server, "port"));
    CLEANUP_FREE char *both = NULL;

    if (!host || !port || json_object_size(server) != 2) {
        return error_set(errp, EINVAL,
                         "each 'server' has a 'host' and a 'port', which are "
                         "strings, and nothing else");
    }
    if (asprintf(&both, strchr(host, ':') ? "[%s]:%s" : "%s:%s", host, port) <
        0) {
        both = NULL;
        return error_nomem(errp);
    }
    return append(mon_host, ";", both, errp);
}

static int take_servers(struct opts *opts, char **mon_host, struct error **errp)
{
    CLEANUP_JSON json_t *servers = opts_take(opts, "server");
    json_t *server;
    size_t i;
    int r = 0;

    if (servers && !json_is_array(servers)) {
        return error_set(errp, EINVAL, "option 'server' must be a list");
    }
    json_array_foreach (servers, i, server) {
        if ((r = take_host(server, mon_host, errp)) < 0) {
            break;
        }
    }
    return r;
}

static int take_auth(struct opts *opts, char **auth, struct error **errp)
{
    CLEANUP_JSON json_t *words = opts_take(opts, "auth-client-required");
    json_t *word;
    size_t i;
    int r = 0;

    if (words && !json_is_array(words)) {
        return error_set(errp, EINVAL,
                         "option 'auth-client-required' must be a list");
    }
    json_array_foreach (words, i, word) {
        const char *text = json_string_value(word);

        if (!text || (strcmp(text, auth_words[0]) != 0 &&
                      strcmp(text, auth_words[1]) != 0)) {
            return error_set(errp, EINVAL,
                             "each 'auth-client-required' is 'cephx' or "
                             "'none'");
        }
        if ((r = append(auth, ";", text, errp)) < 0) {
            break;
        }
    }
    return r;
}

/* The option is ours (core/rbd-name.c), or somebody has written it. */
static int take_pairs(struct opts *opts, struct ceph_place *p,
                      struct error **errp)
{
    const char *text = NULL;
    int r = opts_str(opts, RBD_PAIRS, &text, errp);

    if (r < 0 || !text) {
        return r;
    }
    CLEANUP_JSON json_t *pairs = json_loads(text, 0, NULL);
    size_t count = json_array_size(pairs);
    p->pairs = calloc(count + 1, sizeof(*p->pairs));
    for (size_t i = 0; p->pairs && i < count; i++) {
        const char *word = json_string_value(json_array_get(pairs, i));

        p->pairs[i] = word ? strdup(word) : NULL;
        if (!p->pairs[i]) {
            break;
        }
        p->pair_count++;
    }
    return count > 0 && count % 2 == 0 && p->pair_count == count
               ? 0
               : error_set(errp, EINVAL, "option '%s' is not a list of pairs",
                           RBD_PAIRS);
}

/* --- Secrets --- */

static int find_secret(struct graph *g, const char *id, struct secret *secret,
                       struct error **errp)
{
    return g ? secret_get(g, id, secret, errp)
             : error_set(errp, ENOENT, "No secret with id '%s'", id);
}

static int take_key(struct graph *g, struct opts *opts, struct ceph_place *p,
                    struct error **errp)
{
    struct secret secret = {NULL, 0};
    const char *id = NULL;
    int r = opts_str(opts, "key-secret", &id, errp);

    if (r < 0 || !id) {
        return r;
    }
    r = find_secret(g, id, &secret, errp);
    if (r < 0) {
        return r;
    }
    size_t len = BASE64_ENCODE_RAW_LENGTH(secret.len);
    p->key = malloc(len + 1);
    if (p->key) {
        base64_encode_raw(p->key, secret.len, secret.bytes);
        p->key[len] = '\0';
    }
    secret_release(&secret);
    return p->key ? 0 : error_nomem(errp);
}

static int take_passphrase(struct graph *g, struct opts *opts,
                           struct ceph_place *p, struct error **errp)
{
    struct secret secret = {NULL, 0};
    const char *id = NULL;
    unsigned format = 0;

    if (!opts_has(opts, "encrypt")) {
        return 0;
    }
    bool has_format = opts_has(opts, "encrypt.format");
    int r = opts_enum(opts, "encrypt.format", luks_words, &format, errp);
    if (r == 0) {
        r = opts_str(opts, "encrypt.key-secret", &id, errp);
    }
    if (r == 0 && (!has_format || !id)) {
        r = error_set(errp, EINVAL, "Parameter 'encrypt.%s' is missing",
                      has_format ? "key-secret" : "format");
    }
    if (r == 0) {
        r = find_secret(g, id, &secret, errp);
    }
    if (r < 0) {
        return r;
    }
    p->luks = format == 0 ? CEPH_LUKS1 : CEPH_LUKS2;
    p->passphrase = malloc(secret.len + 1);
    if (p->passphrase && secret.bytes) {
        memcpy(p->passphrase, secret.bytes, secret.len);
        p->passphrase[secret.len] = '\0';
        p->passphrase_len = secret.len;
    }
    secret_release(&secret);
    return p->passphrase ? 0 : error_nomem(errp);
}

/* --- All --- */

int rbd_place_take(struct graph *g, struct opts *opts, struct ceph_place *p,
                   struct error **errp)
{
    int r;

    if ((r = take_needed(opts, "pool", &p->pool, errp)) < 0 ||
        (r = take_string(opts, "namespace", &p->namespace, errp)) < 0 ||
        (r = take_needed(opts, "image", &p->image, errp)) < 0 ||
        (r = take_string(opts, "snapshot", &p->snapshot, errp)) < 0 ||
        (r = take_string(opts, "conf", &p->conf, errp)) < 0 ||
        (r = take_string(opts, "user", &p->user, errp)) < 0 ||
        (r = take_servers(opts, &p->mon_host, errp)) < 0 ||
        (r = take_auth(opts, &p->auth_client_required, errp)) < 0 ||
        (r = take_pairs(opts, p, errp)) < 0 ||
        (r = take_key(g, opts, p, errp)) < 0) {
        return r;
    }
    return take_passphrase(g, opts, p, errp);
}

/* Free what may be a secret. */
static void wipe(char *text)
{
    if (text) {
        explicit_bzero(text, strlen(text));
        free(text);
    }
}

void rbd_place_free(struct ceph_place *p)
{
    wipe(p->key);
    if (p->passphrase) {
        explicit_bzero(p->passphrase, p->passphrase_len);
        free(p->passphrase);
    }
    for (size_t i = 0; i < p->pair_count; i++) {
        wipe(p->pairs[i]);
    }
    free(p->pairs);
    free(p->conf);
    free(p->user);
    free(p->auth_client_required);
    free(p->mon_host);
    free(p->pool);
    free(p->namespace);
    free(p->image);
    free(p->snapshot);
    *p = (struct ceph_place){0};
}
