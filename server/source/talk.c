/* SPDX-License-Identifier: BSD-3-Clause */
/* A conversation with a monitor: see talk.h. */
#include "source/talk.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "client/qmp-client.h"
#include "client/target-names.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/text.h"
#include "nbdelta/tls-creds.h"
#include "net/tls.h"
#include "source/source.h"

#define GREET_MS  5000
#define TIMEOUT_S 60
#define SCHEME    "qmp://"

struct talk {
    char *what;
    char *host; /* NULL: a Unix socket */
    json_t *addr;
    struct tls_keys *keys; /* or NULL */
    int limit_ms;
    int stop_fd;
    bool undoing;

    struct qmp_client client;
    bool open;
    bool gone; /* it could not be opened again */
    bool nbdelta;
    char version[128];
    json_t *refusal; /* the last error, or NULL */
};

/* --- Addresses --- */

static bool is_socket(const char *path)
{
    struct stat st;

    return stat(path, &st) == 0 && S_ISSOCK(st.st_mode);
}

bool talk_is_monitor(const char *what)
{
    return strncmp(what, SCHEME, strlen(SCHEME)) == 0 || is_socket(what);
}

/* HOST:PORT, [ADDRESS]:PORT; one slash may follow. */
static int parse_host(struct talk *t, const char *text, struct error **errp)
{
    CLEANUP_FREE char *copy = strdup(text);
    char *host = copy;
    char *port = copy ? strrchr(copy, ':') : NULL;

    if (!copy) {
        return error_nomem(errp);
    }
    size_t len = strlen(copy);
    if (len > 0 && copy[len - 1] == '/') {
        copy[len - 1] = '\0';
    }
    if (!port || port == copy || !port[1]) {
        return error_set(errp, EINVAL, "'%s' is not qmp://HOST:PORT", t->what);
    }
    *port = '\0';
    if (host[0] == '[' && port[-1] == ']') {
        port[-1] = '\0';
        host++;
    }
    t->host = strdup(host);
    t->addr = json_pack("{s:s, s:s, s:s}", "type", "inet", "host", host, "port",
                        port + 1);
    return t->host && t->addr
               ? 0
               : error_set(errp, EINVAL, "'%s' is not qmp://HOST:PORT",
                           t->what);
}

static int parse_what(struct talk *t, struct error **errp)
{
    if (strncmp(t->what, SCHEME, strlen(SCHEME)) == 0) {
        return parse_host(t, t->what + strlen(SCHEME), errp);
    }
    t->addr = json_pack("{s:s, s:s}", "type", "unix", "path", t->what);
    return t->addr ? 0
                   : error_set(errp, EINVAL, "'%s' is not a text in UTF-8",
                               t->what);
}

static int load_keys(struct talk *t, const struct source_options *o,
                     struct error **errp)
{
    const struct tls_creds *creds;

    if (!o->tls_creds || !t->host) {
        return 0;
    }
    int r = tls_creds_get(o->graph, o->tls_creds, false, &creds, errp);
    if (r < 0) {
        return r;
    }
    r = tls_keys_load(creds, NULL, &t->keys, errp);
    tls_creds_put(creds);
    return r;
}

/* --- The connection --- */

static int number_at(const json_t *object, const char *key)
{
    return (int)json_integer_value(json_object_get(object, key));
}

static void note_version(struct talk *t, const json_t *greeting)
{
    const json_t *version = json_object_get(json_object_get(greeting, "QMP"),
                                            "version");
    const json_t *qemu = json_object_get(version, "qemu");
    const char *package =
        json_string_value(json_object_get(version, "package"));

    t->nbdelta = package && strncmp(package, "nbdelta ", 8) == 0;
    if (t->nbdelta) {
        (void)snprintf(t->version, sizeof(t->version), "%s", package);
    } else {
        (void)snprintf(t->version, sizeof(t->version), "QEMU %d.%d.%d",
                       number_at(qemu, "major"), number_at(qemu, "minor"),
                       number_at(qemu, "micro"));
    }
}

static void set_limits(struct talk *t)
{
    t->client.limit_ms = t->limit_ms;
    t->client.stop_fd = t->undoing ? -1 : t->stop_fd;
    t->client.stopped = t->client.stopped && !t->undoing;
}

static void hang_up(struct talk *t)
{
    if (t->open) {
        qmp_client_close(&t->client);
        t->open = false;
    }
}

static int dial(struct talk *t, struct error **errp)
{
    CLEANUP_JSON json_t *greeting = NULL;

    t->client = (struct qmp_client)QMP_CLIENT_INIT;
    t->open = true;
    set_limits(t);
    int r = qmp_client_connect(&t->client, t->addr, t->keys, t->host, GREET_MS,
                               &greeting, errp);
    if (r < 0) {
        error_prefix(errp, "'%s': ", t->what);
        hang_up(t);
        return r;
    }
    note_version(t, greeting);
    return 0;
}

int talk_open(const char *what, const struct source_options *o,
              struct talk **tp, struct error **errp)
{
    struct talk *t = calloc(1, sizeof(*t));
    int r = 0;

    if (!t) {
        return error_nomem(errp);
    }
    t->limit_ms = 1000 * (int)(o->timeout_s > 0 ? o->timeout_s : TIMEOUT_S);
    t->stop_fd = o->stop_fd;
    t->what = strdup(what);
    r = t->what ? parse_what(t, errp) : error_nomem(errp);
    r = r < 0 ? r : load_keys(t, o, errp);
    r = r < 0 ? r : dial(t, errp);
    if (r < 0) {
        talk_close(t);
        return r;
    }
    *tp = t;
    return 0;
}

void talk_close(struct talk *t)
{
    if (!t) {
        return;
    }
    hang_up(t);
    tls_keys_unref(t->keys);
    json_decref(t->addr);
    json_decref(t->refusal);
    free(t->host);
    free(t->what);
    free(t);
}

bool talk_is_nbdelta(const struct talk *t)
{
    return t->nbdelta;
}

const char *talk_version(const struct talk *t)
{
    return t->version;
}

const char *talk_host(const struct talk *t)
{
    return t->host;
}

/* Its effective user, as the kernel tells; @fallback where it does not. */
static uid_t user_of(pid_t pid, uid_t fallback)
{
    char path[64];
    char line[256];
    unsigned long uid = fallback;

    (void)snprintf(path, sizeof(path), "/proc/%ld/status", (long)pid);
    FILE *f = fopen(path, "re");
    while (f && fgets(line, sizeof(line), f)) {
        if (strncmp(line, "Uid:", 4) == 0) {
            char *second;

            (void)strtoul(line + 4, &second, 10);
            uid = strtoul(second, NULL, 10);
            break;
        }
    }
    if (f) {
        (void)fclose(f);
    }
    return (uid_t)uid;
}

int talk_peer(const struct talk *t, pid_t *pid, uid_t *uid)
{
    struct ucred peer;
    socklen_t len = sizeof(peer);

    if (t->host || !t->open) {
        return -ENOTSUP;
    }
    if (t->client.peer > 0) {
        peer.pid = t->client.peer;
        peer.uid = t->client.peer_uid;
    } else if (getsockopt(t->client.fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) <
               0) {
        return -ENOTSUP;
    }
    *pid = peer.pid;
    *uid = user_of(peer.pid, peer.uid);
    return 0;
}

/* --- Commands --- */

static int refuse(struct talk *t, const char *command, const json_t *reply,
                  struct error **errp)
{
    const json_t *e = json_object_get(reply, "error");
    const char *desc = json_string_value(json_object_get(e, "desc"));
    CLEANUP_FREE char *text = text_printable(desc ? desc : "no result");

    t->refusal = json_deep_copy(e);
    return error_set(errp, EREMOTEIO, "'%s': %s: %s", t->what, command,
                     text ? text : "?");
}

/* The old events are of no use to anybody. */
static int exchange(struct talk *t, const char *command, json_t *args,
                    json_t **reply, struct error **errp)
{
    (void)json_array_clear(t->client.events);
    int r = qmp_client_request(&t->client, command, args, reply, errp);
    if (r < 0) {
        error_prefix(errp, "'%s': %s: ", t->what, command);
        hang_up(t);
    }
    return r;
}

int talk_ask(struct talk *t, const char *command, json_t *args, json_t **ret,
             struct error **errp)
{
    CLEANUP_JSON json_t *reply = NULL;
    CLEANUP_JSON json_t *mine = args; /* to be given up */
    int r = 0;

    json_decref(t->refusal);
    t->refusal = NULL;
    if (!t->open) {
        r = t->gone ? error_set(errp, ECONNRESET,
                                "'%s': the connection is lost", t->what)
                    : dial(t, errp);
        t->gone = r < 0;
    }
    r = r < 0 ? r : target_names_resolve(&t->client, command, mine, errp);
    r = r < 0 ? r : exchange(t, command, mine, &reply, errp);
    if (r < 0) {
        return r;
    }
    json_t *value = json_object_get(reply, "return");
    if (!value) {
        return refuse(t, command, reply, errp);
    }
    if (ret) {
        *ret = json_incref(value);
    }
    return 0;
}

bool talk_refused(const struct talk *t, const char *class, const char *part)
{
    const char *is = json_string_value(json_object_get(t->refusal, "class"));
    const char *desc = json_string_value(json_object_get(t->refusal, "desc"));

    return (!class || (is && strcmp(is, class) == 0)) &&
           (!part || (desc && strstr(desc, part)));
}

int talk_check_stop(const struct talk *t, struct error **errp)
{
    struct pollfd p = {.fd = t->stop_fd, .events = POLLIN};

    return poll(&p, 1, 0) > 0 ? error_set(errp, ECANCELED, "interrupted") : 0;
}

void talk_undo(struct talk *t)
{
    t->undoing = true;
    t->gone = false;
    set_limits(t);
}

void talk_resume(struct talk *t)
{
    t->undoing = false;
    t->gone = false;
    set_limits(t);
}
