/* SPDX-License-Identifier: BSD-3-Clause */

/*
 * Everything that a client can send, from its first flags on: options,
 * contexts, requests, and an end anywhere.  The connection then ends, and
 * leaves nothing behind.
 */
#include <jansson.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "daemon.h"
#include "nbd/conn.h"
#include "nbd/export.h"
#include "nbd/pool.h"
#include "nbd/server.h"
#include "nbdelta/action.h"
#include "nbdelta/bitmap.h"
#include "nbdelta/graph.h"
#include "nbdelta/thread.h"
#include "nbdelta/tls-creds.h"
#include "net/tls-policy.h"
#include "net/tls.h"

#define INPUT_MAX (32U << 10) /* what a socket takes without a reader */

static struct exports *exports;
static struct servers *servers;
static struct server *server;
static struct tls_policy *policy; /* TLS may be started */
static struct pool *pool;

static void check(bool ok)
{
    if (!ok) {
        abort();
    }
}

static void make_disk(struct graph *g, const char *name, bool writable)
{
    struct node *n = NULL;
    struct action *add;
    json_t *o = json_pack("{s:s, s:i, s:s}", "driver", "mem", "size", 65536,
                          "node-name", name);

    check(o && graph_open(g, o, &n, NULL) == 0);
    json_decref(o);
    check(bitmap_add_action((struct bitmap_ref){n, "b0"}, 4096, false, false,
                            &add, NULL) == 0 &&
          action_run(g, add, NULL) == 0);
    struct export_options e = {.server = SERVER_UNNAMED,
                               .id = name,
                               .name = name,
                               .node = n,
                               .description = "a disk",
                               .writable = writable,
                               .allocation_depth = true,
                               .all_bitmaps = true,
                               .is_default = true};
    struct export *made;
    check(export_new(exports, &e, &made, NULL) == 0);
    export_publish(exports, made);
}

static void set_up(void)
{
    static struct daemon daemon;
    struct graph *g = graph_new();

    daemon.graph = g;
    daemon.exports = exports = exports_new(&daemon, NULL, NULL);
    pool = pool_new(2);
    check(g && exports && pool);
    servers = servers_new(&daemon);
    check(servers && server_open(servers, &(struct server_options){.max = 0},
                                 &server, NULL) == 0);
    const struct tls_creds creds = {.kind = TLS_ANON, .server = true};
    struct tls_keys *keys;
    check(tls_keys_load(&creds, NULL, &keys, NULL) == 0);
    policy = tls_policy_new(TLS_ON, keys, NULL);
    tls_keys_unref(keys);
    check(policy != NULL);
    make_disk(g, "a", true);
    make_disk(g, "ro", false);
}

static void *drain(void *arg)
{
    const int *fd = arg;
    char buf[65536];

    while (recv(*fd, buf, sizeof(buf), 0) > 0) {
    }
    return NULL;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    pthread_t reader;
    int fds[2];

    if (size > INPUT_MAX) {
        return 0;
    }
    if (!server) {
        set_up();
    }
    check(socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0);
    check(send(fds[0], data, size, MSG_DONTWAIT) == (ssize_t)size);
    check(shutdown(fds[0], SHUT_WR) == 0);
    struct conn *c = conn_new(server, exports, pool, policy, fds[1]);
    check(c != NULL);
    check(thread_start(&reader, "reader", drain, &fds[0]) == 0);
    (void)conn_thread(c);
    conn_free(c);
    thread_join(reader);
    (void)close(fds[0]);
    return 0;
}
