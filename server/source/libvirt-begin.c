/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The instant of a libvirt domain's disks: see libvirt.c.
 *
 *   is another job at work? -> what has changed since -> scratch files, socket
 *   -> virDomainBackupBegin, with the new checkpoint -> options of nodes
 *
 * The caller undoes it when it fails.
 */
#include <dirent.h>
#include <errno.h>
#include <libvirt/libvirt.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client/target-names.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "source/libvirt-priv.h"
#include "source/libvirt-tunnel.h"
#include "source/source.h"

#define DOMAIN_DIRS "/var/lib/libvirt/qemu"
#define SCRATCH_DIR "/var/tmp"

int libvirt_check_stop(const struct libvirt_source *l, struct error **errp)
{
    struct pollfd p = {.fd = l->stop_fd, .events = POLLIN};

    return poll(&p, 1, 0) > 0 ? error_set(errp, ECANCELED, "interrupted") : 0;
}

static int size_fn(virDomainPtr d, struct libvirt_args *args)
{
    virDomainBlockInfo info;
    int r = virDomainGetBlockInfo(d, args->a, &info, 0);

    args->number = r < 0 ? 0 : info.capacity;
    return r;
}

int libvirt_read_sizes(struct source *s, struct error **errp)
{
    const struct libvirt_source *l = s->opaque;
    int r = 0;

    for (unsigned i = 0; r == 0 && i < s->count; i++) {
        struct libvirt_answer answer;

        r = libvirt_call(l->link, size_fn, s->disks[i].name, NULL, 0, &answer,
                         errp);
        s->disks[i].size = answer.number;
    }
    return r;
}

/* --- Is somebody else at work? --- */

/* 1: there is a job; its kind is in `number`. */
static int domain_job_fn(virDomainPtr d, struct libvirt_args *args)
{
    virDomainJobInfo info;
    int r = virDomainGetJobInfo(d, &info);

    args->number = r < 0 ? 0 : (uint64_t)info.type;
    return r < 0 ? r : info.type != VIR_DOMAIN_JOB_NONE;
}

static int block_job_fn(virDomainPtr d, struct libvirt_args *args)
{
    virDomainBlockJobInfo info;

    return virDomainGetBlockJobInfo(d, args->a, &info, 0);
}

static int check_jobs(struct source *s, struct error **errp)
{
    const struct libvirt_source *l = s->opaque;
    int r = libvirt_call(l->link, domain_job_fn, NULL, NULL, 0, NULL, errp);

    if (r == 1) {
        return error_set(errp, EBUSY,
                         "the domain '%s' has another job (virsh domjobinfo "
                         "'%s' tells which)",
                         l->domain, l->domain);
    }
    for (unsigned i = 0; r == 0 && i < s->count; i++) {
        const char *name = s->disks[i].name;

        r = s->disks[i].skip ? 0
                             : libvirt_call(l->link, block_job_fn, name, NULL,
                                            0, NULL, errp);
        if (r == 1) {
            r = error_set(errp, EBUSY,
                          "the disk '%s' has a job that works on it (virsh "
                          "blockjob '%s' '%s' tells which)",
                          name, l->domain, name);
        }
    }
    return r;
}

static int check_new(struct source *s, const char *checkpoint,
                     struct error **errp)
{
    const struct libvirt_source *l = s->opaque;
    int r = checkpoint ? libvirt_has_checkpoint(s, checkpoint, errp) : 0;

    return r == 1 ? error_set(errp, EEXIST,
                              "the domain '%s' has a checkpoint '%s' already",
                              l->domain, checkpoint)
                  : r;
}

/* --- What has changed --- */

/* Is it the first disk that asks for its checkpoint? */
static bool asks_first(const struct source *s, unsigned i)
{
    const struct libvirt_source *l = s->opaque;
    const char *since = s->disks[i].since;
    bool first = since && !s->disks[i].skip && l->disks[i].bitmaps;

    for (unsigned k = 0; first && k < i; k++) {
        const struct source_disk *d = &s->disks[k];
        first = !d->since || d->skip || !l->disks[k].bitmaps ||
                strcmp(d->since, since) != 0;
    }
    return first;
}

static int find_changes(struct source *s, struct error **errp)
{
    const struct libvirt_source *l = s->opaque;
    int r = 0;

    for (unsigned i = 0; i < s->count; i++) {
        struct source_disk *d = &s->disks[i];
        d->reason = d->since && !l->disks[i].bitmaps ? "no-bitmaps" : NULL;
    }
    for (unsigned i = 0; r == 0 && i < s->count; i++) {
        r = asks_first(s, i) ? libvirt_find_changes(s, s->disks[i].since, errp)
                             : 0;
    }
    return r;
}

/* --- Where the scratch files and the socket are --- */

static bool may_give(const struct libvirt_source *l)
{
    return geteuid() == 0 || l->owner == geteuid();
}

/* A directory of ours; else names that nobody can foresee, as libvirt, with
 * another user's rights, makes files there. */
static int choose_scratch(struct source *s, struct error **errp)
{
    struct libvirt_source *l = s->opaque;
    CLEANUP_FREE char *given = l->scratch && !l->remote
                                   ? target_name_absolute(l->scratch)
                                   : NULL;
    const char *parent = given        ? given
                         : l->scratch ? l->scratch
                         : l->remote  ? SCRATCH_DIR
                                      : private_dir_for_files();
    bool own = !l->remote && may_give(l);
    int r = adopt_make_word(l->word, errp);

    if (r == 0 && own) {
        r = private_dir_make(&l->scratch_dir, parent, l->id, errp);
        r = r < 0 ? r : private_dir_give(&l->scratch_dir, l->owner, errp);
    }
    for (unsigned i = 0; r == 0 && i < s->count; i++) {
        char **path = &l->disks[i].scratch;

        free(*path);
        if (asprintf(path, "%s%s%s-%s.qcow2",
                     own ? l->scratch_dir.path : parent, own ? "/" : l->mark,
                     l->word, s->disks[i].name) < 0) {
            *path = NULL;
            r = error_nomem(errp);
        }
    }
    return r;
}

/* "/var/lib/libvirt/qemu/domain-7-vm"; NULL: there is none. */
static char *domain_dir(const struct libvirt_source *l)
{
    DIR *dir = geteuid() == 0 ? opendir(DOMAIN_DIRS) : NULL;
    const struct dirent *e;
    char prefix[32];
    char *path = NULL;

    (void)snprintf(prefix, sizeof(prefix), "domain-%d-", l->domain_id);
    while (dir && !path && (e = readdir(dir)) != NULL) {
        if (strncmp(e->d_name, prefix, strlen(prefix)) == 0 &&
            asprintf(&path, DOMAIN_DIRS "/%s", e->d_name) < 0) {
            path = NULL;
            break;
        }
    }
    if (dir) {
        (void)closedir(dir);
    }
    return path;
}

static int choose_socket(struct libvirt_source *l, struct error **errp)
{
    CLEANUP_FREE char *dir = domain_dir(l);
    int r = 0;

    free(l->socket);
    l->socket = NULL;
    if (dir) {
        r = asprintf(&l->socket, "%s%ssock", dir, l->mark);
    } else {
        r = private_dir_make(&l->socket_dir, private_dir_for_sockets(), l->id,
                             errp);
        r = r < 0 ? r : private_dir_give(&l->socket_dir, l->owner, errp);
        if (r < 0) {
            return r;
        }
        r = asprintf(&l->socket, "%s/nbd.sock", l->socket_dir.path);
    }
    if (r < 0) {
        l->socket = NULL;
        return error_nomem(errp);
    }
    return 0;
}

/* Names that libvirt takes as they are into the domain's directory. */
#define PLAIN_NAME \
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-"
#define SHORT_NAME 20

/* At the other host: in the domain's own directory, or, where nobody knows that
 * one, a name that nobody can foresee. */
static int choose_far_socket(struct libvirt_source *l, struct error **errp)
{
    bool plain = strstr(l->uri, "/system") &&
                 strlen(l->domain) != VIR_UUID_STRING_BUFLEN - 1 &&
                 l->domain[strspn(l->domain, PLAIN_NAME)] == '\0';
    uint64_t random = 0;

    if (!plain && getentropy(&random, sizeof(random)) < 0) {
        return error_set(errp, errno, "no random number: %s", strerror(errno));
    }
    free(l->socket);
    if ((plain ? asprintf(&l->socket, DOMAIN_DIRS "/domain-%d-%.*s%ssock",
                          l->domain_id, SHORT_NAME, l->domain, l->mark)
               : asprintf(&l->socket, SCRATCH_DIR "%s%llx-sock", l->mark,
                          (unsigned long long)random)) < 0) {
        l->socket = NULL;
        return error_nomem(errp);
    }
    return private_dir_make(&l->socket_dir, private_dir_for_sockets(), l->id,
                            errp);
}

/* Where ssh makes it, and our nodes find it. */
static char *near_socket(const struct libvirt_source *l)
{
    char *path = NULL;

    return asprintf(&path, "%s/nbd.sock", l->socket_dir.path) < 0 ? NULL : path;
}

static int open_tunnel(struct libvirt_source *l, struct error **errp)
{
    CLEANUP_FREE char *near = near_socket(l);

    return near ? libvirt_tunnel_open(l->uri, near, l->socket, l->limit_ms,
                                      l->stop_fd, &l->tunnel, errp)
                : error_nomem(errp);
}

/* *address: the options of nodes, for the server that runs, or will. */
static int tell_address(const struct libvirt_source *l, json_t **address,
                        struct error **errp)
{
    if (l->nbd) {
        int r = frozen_address(l->nbd, NULL, address, errp);
        (void)json_object_del(*address, "export");
        return r;
    }
    CLEANUP_FREE char *near = l->by_ssh ? near_socket(l) : strdup(l->socket);
    *address = near ? json_pack("{s:{s:s, s:s}}", "server", "type", "unix",
                                "path", near)
                    : NULL;
    /* ssh may be about to start anew. */
    return *address &&
                   (!l->by_ssh ||
                    json_object_set_new(*address, "open-timeout",
                                        json_integer(l->limit_ms / 1000)) == 0)
               ? 0
               : error_nomem(errp);
}

static int choose_place(struct libvirt_source *l, struct error **errp)
{
    if (l->by_ssh) {
        return l->uri && !l->nbd
                   ? choose_far_socket(l, errp)
                   : error_set(
                         errp, EINVAL,
                         "a tunnel needs libvirt's connection URI, and no "
                         "NBD server that is named");
    }
    if (!l->nbd && l->remote) {
        return error_set(
            errp, EINVAL,
            "the domain '%s' is on another host: say how to get to "
            "the NBD server of its backup (--tunnel=ssh), or where "
            "it shall listen (--nbd=nbds://HOST:PORT)",
            l->domain);
    }
    return l->nbd ? 0 : choose_socket(l, errp);
}

/* *address: the options of nodes.  Its texts are borrowed by *server. */
static int choose_server(struct libvirt_source *l,
                         struct libvirt_xml_server *server, json_t **address,
                         struct error **errp)
{
    int r = choose_place(l, errp);

    r = r < 0 ? r : tell_address(l, address, errp);
    if (r < 0 || !l->nbd) {
        server->socket = l->socket;
        return r;
    }
    const json_t *at = json_object_get(*address, "server");
    server->socket = json_string_value(json_object_get(at, "path"));
    server->host = json_string_value(json_object_get(at, "host"));
    server->port = json_string_value(json_object_get(at, "port"));
    server->tls = json_is_true(json_object_get(*address, "tls")) ||
                  json_object_get(*address, "tls-creds");
    return server->socket || (server->host && server->port)
               ? 0
               : error_set(errp, EINVAL,
                           "'%s' is no place where libvirt's NBD server can be",
                           l->nbd);
}

/* --- The instant --- */

static int begin_fn(virDomainPtr d, struct libvirt_args *args)
{
    return virDomainBackupBegin(d, args->a, args->b, 0);
}

static struct libvirt_xml_item *make_items(struct source *s)
{
    const struct libvirt_source *l = s->opaque;
    struct libvirt_xml_item *items = calloc(s->count, sizeof(*items));

    for (unsigned i = 0; items && i < s->count; i++) {
        const struct source_disk *d = &s->disks[i];

        items[i] = (struct libvirt_xml_item){
            .name = d->name,
            .since = d->reason ? NULL : d->since,
            .scratch = d->skip ? NULL : l->disks[i].scratch,
            .checkpoint = d->checkpoint,
        };
    }
    return items;
}

static void choose_checkpoints(struct source *s)
{
    const struct libvirt_source *l = s->opaque;

    for (unsigned i = 0; i < s->count; i++) {
        struct source_disk *d = &s->disks[i];

        d->checkpoint = l->checkpoint && !d->skip && l->disks[i].bitmaps;
        if (l->checkpoint && !d->skip && !l->disks[i].bitmaps && !d->reason) {
            d->reason = "no-bitmaps";
        }
    }
}

static bool any_checkpoint(const struct source *s)
{
    bool any = false;

    for (unsigned i = 0; i < s->count; i++) {
        any |= s->disks[i].checkpoint;
    }
    return any;
}

/* A bitmap of the new checkpoint's name may have outlived its metadata.  The
 * words are QEMU's, which nobody translates. */
static int call_begin(struct source *s, const char *backup,
                      const char *checkpoint, struct error **errp)
{
    struct libvirt_source *l = s->opaque;
    CLEANUP_ERROR struct error *err = NULL;
    int r = libvirt_call_once(l->link, begin_fn, backup, checkpoint, 0, NULL,
                              &err);

    if (r < 0 && checkpoint &&
        strstr(error_message(err), "Bitmap already exists")) {
        r = libvirt_forget(s, l->checkpoint, errp);
        return r < 0 ? r
                     : libvirt_call_once(l->link, begin_fn, backup, checkpoint,
                                         0, NULL, errp);
    }
    return r < 0 ? error_set(errp, -r, "%s", error_message(err)) : 0;
}

static int take_instant(struct source *s,
                        const struct libvirt_xml_server *server,
                        struct error **errp)
{
    struct libvirt_source *l = s->opaque;
    CLEANUP_FREE struct libvirt_xml_item *items = make_items(s);
    CLEANUP_FREE char *backup =
        items ? libvirt_xml_backup(server, items, s->count) : NULL;
    CLEANUP_FREE char *checkpoint =
        items && any_checkpoint(s)
            ? libvirt_xml_checkpoint(l->checkpoint, items, s->count, false)
            : NULL;

    if (!backup || (any_checkpoint(s) && !checkpoint)) {
        return error_nomem(errp);
    }
    int r = libvirt_check_stop(l, errp);
    if (r < 0) {
        return r;
    }
    l->job = true;
    l->fresh = checkpoint != NULL;
    return call_begin(s, backup, checkpoint, errp);
}

/* An image of qcow2's version 2 has no place for bitmaps.  Neither its name nor
 * libvirt's XML says so, but QEMU does when it is asked for one. */
static bool is_about_version(const struct error *err)
{
    return err && strstr(error_message(err), "dirty bitmaps in qcow2 v2");
}

/* Which disks are these?  Each is asked for a checkpoint of its own. */
static int find_version_2(struct source *s, struct error **errp)
{
    const struct libvirt_source *l = s->opaque;
    int r = 0;

    for (unsigned i = 0; r == 0 && i < s->count; i++) {
        CLEANUP_ERROR struct error *err = NULL;

        if (!s->disks[i].checkpoint) {
            continue;
        }
        r = libvirt_try_checkpoint(s, i, l->checkpoint, &err);
        if (r < 0 && is_about_version(err)) {
            l->disks[i].bitmaps = false;
            s->disks[i].reason = NULL;
            r = 0;
        } else if (r < 0) {
            return error_set(errp, -r, "%s", error_message(err));
        }
    }
    return r;
}

static int begin_with_bitmaps(struct source *s,
                              const struct libvirt_xml_server *server,
                              struct error **errp)
{
    CLEANUP_ERROR struct error *err = NULL;
    int r = take_instant(s, server, &err);

    if (r < 0 && is_about_version(err)) {
        r = find_version_2(s, errp);
        choose_checkpoints(s);
        return r < 0 ? r : take_instant(s, server, errp);
    }
    return r < 0 ? error_set(errp, -r, "%s", error_message(err)) : 0;
}

static int fill_disks(struct source *s, const json_t *address,
                      struct error **errp)
{
    const struct libvirt_source *l = s->opaque;
    int r = 0;

    for (unsigned i = 0; r == 0 && i < s->count; i++) {
        struct source_disk *d = &s->disks[i];
        CLEANUP_FREE char *context = NULL;

        if (asprintf(&context, "qemu:dirty-bitmap:" LIBVIRT_XML_BITMAP "%s",
                     d->name) < 0) {
            context = NULL;
            return error_nomem(errp);
        }
        r = d->skip
                ? 0
                : frozen_fill(&l->frozen, d, address, d->name,
                              d->since && !d->reason ? context : NULL, errp);
    }
    return r;
}

int libvirt_freeze_disks(struct source *s, struct error **errp)
{
    struct libvirt_source *l = s->opaque;
    CLEANUP_JSON json_t *address = NULL;
    struct libvirt_xml_server server = {0};
    int r = check_jobs(s, errp);

    r = r < 0 ? r : check_new(s, l->checkpoint, errp);
    r = r < 0 ? r : libvirt_read_sizes(s, errp);
    r = r < 0 ? r : find_changes(s, errp);
    if (r < 0) {
        return r;
    }
    choose_checkpoints(s);
    r = choose_scratch(s, errp);
    r = r < 0 ? r : choose_server(l, &server, &address, errp);
    r = r < 0 ? r : begin_with_bitmaps(s, &server, errp);
    r = r == 0 && l->by_ssh ? open_tunnel(l, errp) : r;
    r = r < 0 ? r : fill_disks(s, address, errp);
    r = r < 0 ? r : libvirt_make_identity(s, errp);
    return r < 0 ? r : libvirt_check_stop(l, errp);
}

int libvirt_adopt_disks(struct source *s, struct error **errp)
{
    struct libvirt_source *l = s->opaque;
    CLEANUP_JSON json_t *address = NULL;
    int r = libvirt_begin_adopted(s, errp);

    if (r == 0 && l->by_ssh) {
        r = private_dir_make(&l->socket_dir, private_dir_for_sockets(), l->id,
                             errp);
        r = r < 0 ? r : open_tunnel(l, errp);
    }
    r = r < 0 ? r : tell_address(l, &address, errp);
    return r < 0 ? r : fill_disks(s, address, errp);
}
