/* SPDX-License-Identifier: BSD-3-Clause */
/* The NBD server and its exports. */
#include <errno.h>
#include <string.h>

#include "commands/table.h"
#include "daemon.h"
#include "disk.h"
#include "nbd/export.h"
#include "nbd/proto.h"
#include "nbd/server.h"
#include "nbdelta/bitmap.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "nbdelta/job.h"
#include "nbdelta/text.h"
#include "net/address.h"
#include "net/tls-policy.h"
#include "net/tls.h"
#include "objects/object.h"

#define MAX_CONNECTIONS 100 /* unless told otherwise, as QEMU */

/* --- The server. --- */

/* *policy: what the members for TLS say; NULL: there are none. */
static int tls_policy_of(struct qmp_call *call, struct tls_policy **policy,
                         struct error **errp)
{
    const struct objects *objects = call->daemon->objects;
    const char *id = qmp_str(call, "tls-creds");
    const char *authz = qmp_str(call, "tls-authz");
    struct tls_keys *keys;

    if (!id) {
        return authz ? error_set(errp, EINVAL,
                                 "'tls-authz' goes with 'tls-creds' only")
                     : 0;
    }
    int r = objects_tls_keys(objects, id, true, &keys, errp);
    if (r < 0) {
        return r;
    }
    if (authz && !tls_keys_identify(keys)) {
        r = error_set(errp, EINVAL,
                      "TLS credentials '%s' do not tell who a client is, so "
                      "'tls-authz' cannot be used",
                      id);
    } else if (authz) {
        r = objects_check_authz(objects, authz, errp);
    }
    if (r == 0) {
        *policy = tls_policy_new(TLS_REQUIRE, keys, authz);
        r = *policy ? 0 : error_nomem(errp);
    }
    tls_keys_unref(keys);
    return r;
}

static int start_server(struct qmp_call *call, const json_t *addr,
                        struct error **errp)
{
    struct server_options o = {
        .id = qmp_str(call, "id"),
        .max = (unsigned)qmp_int(call, "max-connections", MAX_CONNECTIONS),
        .handshake_s = (unsigned)qmp_int(call, "handshake-max-seconds",
                                         HANDSHAKE_S),
        .max_per_address = (unsigned)qmp_int(call,
                                             "max-connections-per-address", 0),
    };
    struct server *s;

    o.handshake_s = o.handshake_s ? o.handshake_s : HANDSHAKE_FOREVER;
    if (o.id && !text_is_id(o.id)) {
        return error_set(errp, EINVAL, "Invalid NBD server id");
    }
    int r = tls_policy_of(call, &o.policy, errp);
    if (r < 0) {
        return r;
    }
    r = server_open(call->daemon->servers, &o, &s, errp);
    tls_policy_unref(o.policy);
    if (r < 0) {
        return r;
    }
    r = server_listen(s, addr, errp);
    if (r < 0) {
        server_close(s);
    }
    server_unref(s);
    return r;
}

static int cmd_server_start(struct qmp_call *call, struct error **errp)
{
    CLEANUP_JSON json_t *addr =
        address_from_legacy(json_object_get(call->args, "addr"));

    return addr ? start_server(call, addr, errp) : error_nomem(errp);
}

static int option_server(struct qmp_call *call, struct error **errp)
{
    return start_server(call, json_object_get(call->args, "addr"), errp);
}

/* The events of its exports come before the reply. */
static int cmd_server_stop(struct qmp_call *call, struct error **errp)
{
    struct daemon *d = call->daemon;
    struct server *s = server_find(d->servers, qmp_str(call, "id"), errp);

    if (!s) {
        return -ENOENT;
    }
    mutex_is_held(&d->jobs->lock);
    uint64_t serial = server_serial(s);
    exports_remove_all(d->exports, serial);
    server_close(s);
    server_unref(s);
    exports_settle(d->exports, d->jobs, serial);
    return 0;
}

/* --- Exports. --- */

static int check_description(const char *text, struct error **errp)
{
    return text && strlen(text) > NBD_STRING_MAX
               ? error_set(errp, EINVAL, "description '%.64s...' too long",
                           text)
               : 0;
}

/* An item of "bitmaps".  A string is a name that is looked for below the node,
 * too; an object names the bitmap's node, and perhaps how clients call it. */
static int add_export_bitmap(struct daemon *d, struct export *e,
                             struct node *own, const json_t *item,
                             struct error **errp)
{
    const char *name = json_string_value(item);
    struct node *n;

    if (name) {
        return export_add_bitmap(d->exports, e, own, name, true, errp);
    }
    name = json_string_value(json_object_get(item, "name"));
    const char *node = json_string_value(json_object_get(item, "node"));
    const char *as = json_string_value(json_object_get(item, "context-name"));
    n = graph_find(d->graph, node);
    if (!n) {
        return error_set(errp, ENODEV, "Node '%.200s' not found", node);
    }
    if (as && (as[0] == '\0' || strlen(as) > BITMAP_NAME_MAX)) {
        return error_set(errp, EINVAL, "a context's name has 1 to %d bytes",
                         BITMAP_NAME_MAX);
    }
    return export_add_bitmap_as(d->exports, e, n, name, false, as ? as : name,
                                errp);
}

static int describe_export(struct daemon *d, const struct export_options *o,
                           const json_t *bitmaps, struct error **errp)
{
    struct export *e;
    size_t i;
    json_t *item;
    int r = check_description(o->description, errp);

    if (r < 0 || (r = export_new(d->exports, o, &e, errp)) < 0) {
        return r;
    }
    json_array_foreach (bitmaps, i, item) {
        r = r == 0 ? add_export_bitmap(d, e, o->node, item, errp) : r;
    }
    if (r < 0) {
        export_drop(d->exports, e);
    } else {
        export_publish(d->exports, e);
    }
    return r;
}

static int check_iothread(struct qmp_call *call, struct error **errp)
{
    const char *id = qmp_str(call, "iothread");
    const char *type = id ? objects_type(call->daemon->objects, id) : NULL;

    if (id && (!type || strcmp(type, "iothread") != 0)) {
        return error_set(errp, ENOENT, "iothread \"%.200s\" not found", id);
    }
    return 0;
}

/* The clients that may open the export, if not all may. */
static int check_authz(struct qmp_call *call, const struct server *s,
                       const char *key, struct error **errp)
{
    const char *id = qmp_str(call, key);

    if (!id) {
        return 0;
    }
    return server_can_identify(s)
               ? objects_check_authz(call->daemon->objects, id, errp)
               : error_set(errp, EINVAL,
                           "'%s' goes with a server whose TLS credentials "
                           "tell who a client is",
                           key);
}

/* The export is for the server @id. */
static int add_export_to(struct qmp_call *call, const char *id,
                         struct export_options *o, const json_t *bitmaps,
                         struct error **errp)
{
    struct server *s = server_find(call->daemon->servers, id, errp);
    int r;

    if (!s) {
        return -ENOENT;
    }
    o->server = server_serial(s);
    o->server_id = id;
    r = check_authz(call, s, "tls-authz", errp);
    r = r < 0 ? r : check_authz(call, s, "tls-authz-writable", errp);
    server_unref(s);
    return r < 0 ? r : describe_export(call->daemon, o, bitmaps, errp);
}

/* How long a node that hangs may hold up what activates it. */
#define ACTIVATE_NS UINT64_C(2000000000)

/* Clients find a disk that can be written to, if they may. */
static int activate(struct daemon *d, const struct export_options *o,
                    struct error **errp)
{
    const char *name = node_name(o->node);

    if (o->allow_inactive || node_active(o->node)) {
        return 0;
    }
    int r = graph_settle(d->graph, name, ACTIVATE_NS, errp);
    return r < 0 ? r : graph_set_active(d->graph, name, true, errp);
}

static int cmd_export_add(struct qmp_call *call, struct error **errp)
{
    struct daemon *d = call->daemon;
    const char *node = qmp_str(call, "node-name");
    const char *name = qmp_str(call, "name");
    struct export_options o = {
        .id = qmp_str(call, "id"),
        .name = name ? name : node,
        .description = qmp_str(call, "description"),
        .node = graph_find(d->graph, node),
        .writable = qmp_bool(call, "writable", false),
        .writethrough = qmp_bool(call, "writethrough", false),
        .allocation_depth = qmp_bool(call, "allocation-depth", false),
        .authz = qmp_str(call, "tls-authz"),
        .authz_writable = qmp_str(call, "tls-authz-writable"),
        .allow_inactive = qmp_bool(call, "allow-inactive", false),
    };

    if (!text_is_id(o.id)) {
        return error_set(errp, EINVAL, "Invalid block export id");
    }
    int r = exports_check_id(d->exports, o.id, errp);
    if (r < 0) {
        return r;
    }
    if (!o.node) {
        return error_set(errp, ENODEV,
                         "Cannot find device='' nor node-name='%.200s'", node);
    }
    if (o.writable && node_read_only(o.node)) {
        return error_set(errp, EACCES,
                         "Cannot export read-only node as writable");
    }
    r = check_iothread(call, errp);
    r = r < 0 ? r : activate(d, &o, errp);
    return r < 0 ? r
                 : add_export_to(call, qmp_str(call, "server"), &o,
                                 json_object_get(call->args, "bitmaps"), errp);
}

/* The name is the id as well.  A read-only node makes the export read-only. */
static int cmd_server_add(struct qmp_call *call, struct error **errp)
{
    struct daemon *d = call->daemon;
    const char *device = qmp_str(call, "device");
    const char *name = qmp_str(call, "name");
    const json_t *bitmap = json_object_get(call->args, "bitmap");
    struct export_options o = {
        .id = name ? name : device,
        .name = name ? name : device,
        .description = qmp_str(call, "description"),
        .node = disk_find_node(d, device, errp),
    };
    CLEANUP_JSON json_t *bitmaps = bitmap ? json_pack("[O]", bitmap)
                                          : json_array();

    if (!o.node) {
        return -ENODEV;
    }
    if (!text_is_id(o.id)) {
        return error_set(errp, EINVAL, "Invalid block export id");
    }
    o.writable = qmp_bool(call, "writable", false) && !node_read_only(o.node);
    int r = exports_check_id(d->exports, o.id, errp);
    r = r < 0 ? r : activate(d, &o, errp);
    return r < 0 ? r : add_export_to(call, NULL, &o, bitmaps, errp);
}

/* How long clients that are leaving may take; how long it may take to find out
 * whether a client is leaving; and how long a client that stays is idle. */
#define LEAVE_NS  UINT64_C(5000000000)
#define UNSURE_NS UINT64_C(500000000)
#define HERE_NS   UINT64_C(50000000)

/* Wait until clients are gone that have closed their connection, or have said
 * that they will.  The monitor lock is given up meanwhile. */
static void let_clients_leave(struct daemon *d, const char *id)
    REQUIRES(d->jobs->lock)
{
    struct export *e = exports_find_id(d->exports, id);
    const void *which = e; /* only to be compared */
    uint64_t begin = now_ns();
    uint64_t here = 0;

    export_unref(d->exports, e);
    exports_collect(d->exports, d->jobs);
    while (exports_clients(d->exports, id) > 0) {
        enum presence p = servers_presence(d->servers, which);
        uint64_t now = now_ns();

        here = p != CLIENT_HERE ? 0 : here ? here : now;
        if ((here && now - here >= HERE_NS) ||
            now - begin >= (p == CLIENT_UNSURE ? UNSURE_NS : LEAVE_NS)) {
            return;
        }
        exports_pause(d->exports, d->jobs);
    }
}

static int remove_export(struct qmp_call *call, const char *id,
                         struct error **errp)
{
    struct daemon *d = call->daemon;
    const char *mode = qmp_str(call, "mode");
    bool safe = !mode || strcmp(mode, "safe") == 0;
    struct export *e;

    mutex_is_held(&d->jobs->lock);
    if (safe) {
        let_clients_leave(d, id);
    }
    int r = exports_remove(d->exports, id, safe, &e, errp);
    if (r < 0) {
        return r;
    }
    servers_end_export(d->servers, e);
    export_unref(d->exports, e);
    /* Now, unless it has to wait for clients. */
    exports_collect(d->exports, d->jobs);
    return 0;
}

static int cmd_export_del(struct qmp_call *call, struct error **errp)
{
    return remove_export(call, qmp_str(call, "id"), errp);
}

static int cmd_server_remove(struct qmp_call *call, struct error **errp)
{
    return remove_export(call, qmp_str(call, "name"), errp);
}

static int cmd_query_exports(struct qmp_call *call, struct error **errp)
{
    call->ret = exports_query(call->daemon->exports);
    return call->ret ? 0 : error_nomem(errp);
}

static int cmd_query_clients(struct qmp_call *call, struct error **errp)
{
    json_t *servers = servers_query(call->daemon->servers);
    json_t *exports = exports_query_clients(call->daemon->exports);

    call->ret = json_pack("{s:o, s:o}", "servers", servers, "exports", exports);
    return call->ret ? 0 : error_nomem(errp);
}

/* --- The table. --- */

static const char *const modes[] = {"safe", "hard", NULL};
static const char *const types[] = {"nbd", NULL};

static const struct qmp_arg start_args[] = {
    QMP_OPT("handshake-max-seconds", UINT32),
    QMP_OPT("tls-creds", STR),
    QMP_OPT("tls-authz", STR),
    QMP_OPT("max-connections", UINT32),
    QMP_ARG("addr", OBJECT, .members = address_legacy_args),
    QMP_OPT("id", STR),
    QMP_OPT("max-connections-per-address", UINT32),
    QMP_LAST,
};

static const struct qmp_arg option_args[] = {
    QMP_OPT("id", STR),
    QMP_OPT("handshake-max-seconds", UINT32),
    QMP_ARG("addr", OBJECT, .members = address_args),
    QMP_OPT("tls-creds", STR),
    QMP_OPT("tls-authz", STR),
    QMP_OPT("max-connections", UINT32),
    QMP_OPT("max-connections-per-address", UINT32),
    QMP_LAST,
};

static const struct qmp_arg stop_args[] = {
    QMP_OPT("id", STR),
    QMP_LAST,
};

static const struct qmp_arg bitmap_args[] = {
    QMP_ARG("node", STR),
    QMP_ARG("name", STR),
    QMP_OPT("context-name", STR),
    QMP_LAST,
};

static const struct qmp_arg nbd_args[] = {
    QMP_OPT("name", STR),
    QMP_OPT("description", STR),
    QMP_OPT("bitmaps", STR_OR_OBJECT_ARRAY, .members = bitmap_args,
            .type_name = "BlockDirtyBitmapOrStr"),
    QMP_OPT("allocation-depth", BOOL),
    QMP_OPT("server", STR),
    QMP_OPT("tls-authz", STR),
    QMP_OPT("tls-authz-writable", STR),
    QMP_LAST,
};

static const struct qmp_variant export_variants[] = {
    {"nbd", nbd_args},
    {NULL, NULL},
};

static const struct qmp_arg export_add_args[] = {
    QMP_ARG("type", ENUM, .words = types),
    QMP_ARG("id", STR),
    QMP_OPT("allow-inactive", BOOL),
    QMP_OPT("fixed-iothread", BOOL),
    QMP_OPT("iothread", STR),
    QMP_ARG("node-name", STR),
    QMP_OPT("writable", BOOL),
    QMP_OPT("writethrough", BOOL),
    QMP_VARIANTS("type", export_variants),
};

static const struct qmp_arg export_del_args[] = {
    QMP_ARG("id", STR),
    QMP_OPT("mode", ENUM, .words = modes),
    QMP_LAST,
};

static const struct qmp_arg server_add_args[] = {
    QMP_OPT("name", STR),   QMP_OPT("description", STR),
    QMP_ARG("device", STR), QMP_OPT("writable", BOOL),
    QMP_OPT("bitmap", STR), QMP_LAST,
};

static const struct qmp_arg server_remove_args[] = {
    QMP_ARG("name", STR),
    QMP_OPT("mode", ENUM, .words = modes),
    QMP_LAST,
};

static const struct qmp_arg info_members[] = {
    QMP_ARG("id", STR),        QMP_ARG("type", ENUM, .words = types),
    QMP_ARG("node-name", STR), QMP_ARG("shutting-down", BOOL),
    QMP_OPT("server", STR),    QMP_LAST,
};
static const struct qmp_arg exports_type = QMP_ARG("", OBJECTS,
                                                   .members = info_members);

static const struct qmp_arg server_members[] = {
    QMP_OPT("server", STR),
    QMP_ARG("clients", INT),
    QMP_ARG("turned-away", INT),
    QMP_OPT("max-connections", INT),
    QMP_OPT("max-connections-per-address", INT),
    QMP_LAST,
};
static const struct qmp_arg export_clients_members[] = {
    QMP_ARG("id", STR),
    QMP_ARG("clients", INT),
    QMP_LAST,
};
static const struct qmp_arg clients_members[] = {
    QMP_ARG("servers", OBJECTS, .members = server_members),
    QMP_ARG("exports", OBJECTS, .members = export_clients_members),
    QMP_LAST,
};
static const struct qmp_arg clients_type = QMP_ARG("", OBJECT,
                                                   .members = clients_members);

const struct qmp_command qmp_nbd_server_option =
    QMP_COMMAND("nbd-server", option_server, option_args);

const struct qmp_command qmp_export_commands[] = {
    QMP_COMMAND("block-export-add", cmd_export_add, export_add_args),
    QMP_COMMAND("block-export-del", cmd_export_del, export_del_args),
    QMP_COMMAND("nbd-server-add", cmd_server_add, server_add_args,
                .features = qmp_deprecated),
    QMP_COMMAND("nbd-server-remove", cmd_server_remove, server_remove_args,
                .features = qmp_deprecated),
    QMP_COMMAND("nbd-server-start", cmd_server_start, start_args),
    QMP_COMMAND("nbd-server-stop", cmd_server_stop, stop_args),
    QMP_COMMAND("query-block-exports", cmd_query_exports, NULL,
                .ret = &exports_type),
    QMP_COMMAND("query-nbd-clients", cmd_query_clients, NULL,
                .ret = &clients_type),
    QMP_COMMANDS_END,
};
