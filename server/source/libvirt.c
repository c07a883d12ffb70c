/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Disks of a domain of libvirt: a module
 * ======================================
 *
 *   guest --> disk's image: bitmaps of checkpoints
 *                | old bytes
 *                v
 *             scratch file --> export of QEMU's NBD server, with what is dirty
 *
 *   begin   one virDomainBackupBegin: all disks, pull mode, the new checkpoint
 *   end     virDomainAbortJob, which is how a pull-mode backup ends, and a wait
 *           for its end; then the new checkpoint is deleted, or stays
 *
 * At another host the server listens on TCP, or ssh carries the socket
 * (libvirt-tunnel.h).  Libvirt makes the scratch files and removes them.  The
 * NBD server's socket is in the domain's own directory, where SELinux and
 * AppArmor let QEMU make one, else in a private one of ours.
 *
 * A backup goes on while libvirt's daemon starts anew: QEMU does the work.  So
 * it does when we are killed, and the next run takes it over (libvirt-adopt.c),
 * or ends it.
 */
#include <errno.h>
#include <libvirt/libvirt.h>
#include <libvirt/virterror.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/module.h"
#include "nbdelta/thread.h"
#include "source/adopt.h"
#include "source/libvirt-priv.h"
#include "source/libvirt-tunnel.h"
#include "source/source.h"

#define LIMIT_S 60
#define POLL_MS 50
#define ERROR_SHUT_OFF                                                         \
    "the domain '%s' is shut off, and libvirt backs up running domains only: " \
    "start it (virsh start --paused '%s' runs no guest), or back up its "      \
    "images by their names:%s"

static int is_active_fn(virDomainPtr d, struct libvirt_args *args)
{
    (void)args;
    return virDomainIsActive(d);
}

/* --- The job of a backup --- */

/* A driver that knows no backups has no job, either. */
static int backup_xml_fn(virDomainPtr d, struct libvirt_args *args)
{
    args->text = virDomainBackupGetXMLDesc(d, 0);
    if (args->text) {
        return 0;
    }
    int code = virGetLastErrorCode();
    return code == VIR_ERR_NO_DOMAIN_BACKUP || code == VIR_ERR_NO_SUPPORT ||
                   code == VIR_ERR_OPERATION_INVALID
               ? 0
               : -1;
}

static int abort_fn(virDomainPtr d, struct libvirt_args *args)
{
    (void)args;
    return virDomainAbortJob(d);
}

int libvirt_has_job(const struct libvirt_source *l, const char *word,
                    struct error **errp)
{
    struct libvirt_answer answer;
    int r = libvirt_call(l->link, backup_xml_fn, NULL, NULL, 0, &answer, errp);

    if (r == 0 && answer.text) {
        r = strstr(answer.text, l->mark) &&
            (!word || strstr(answer.text, word));
    }
    free(answer.text);
    return r;
}

/* Libvirt replies before the job has ended. */
static int stop_job(struct libvirt_source *l, struct error **errp)
{
    uint64_t end = now_ns() + (uint64_t)l->limit_ms * 1000000;
    const struct timespec nap = {.tv_nsec = POLL_MS * 1000000L};
    int r = libvirt_has_job(l, NULL, errp);

    if (r == 1) {
        /* It may be ending already. */
        (void)libvirt_call(l->link, abort_fn, NULL, NULL, 0, NULL, NULL);
        r = libvirt_has_job(l, NULL, errp);
    }
    while (r == 1 && now_ns() < end) {
        (void)nanosleep(&nap, NULL);
        r = libvirt_has_job(l, NULL, errp);
    }
    return r <= 0 ? r
                  : error_set(errp, EBUSY,
                              "the backup job of the domain '%s' does not end",
                              l->domain);
}

/* --- Open --- */

static int domain_xml_fn(virDomainPtr d, struct libvirt_args *args)
{
    args->text = virDomainGetXMLDesc(d, args->flags);
    return args->text ? 0 : -1;
}

static int version_fn(virDomainPtr d, struct libvirt_args *args)
{
    virConnectPtr c = virDomainGetConnect(d);
    unsigned long qemu = 0;
    unsigned long libvirt = 0;
    const char *type = virConnectGetType(c);

    if (!type || virConnectGetLibVersion(c, &libvirt) < 0 ||
        virConnectGetVersion(c, &qemu) < 0) {
        return -1;
    }
    return asprintf(&args->text, "libvirt %lu.%lu.%lu, %s %lu.%lu.%lu",
                    libvirt / 1000000, libvirt / 1000 % 1000, libvirt % 1000,
                    type, qemu / 1000000, qemu / 1000 % 1000, qemu % 1000) < 0
               ? -1
               : 0;
}

static int uri_fn(virDomainPtr d, struct libvirt_args *args)
{
    args->text = virConnectGetURI(virDomainGetConnect(d));
    return args->text ? 0 : -1;
}

/* "qemu+ssh://host/system" is another host's. */
static bool is_remote(const char *uri)
{
    const char *host = strstr(uri, "://");

    return host && host[3] != '/' && host[3] != '\0';
}

static int look_at_link(struct source *s, struct error **errp)
{
    struct libvirt_source *l = s->opaque;
    struct libvirt_answer answer;
    int r = libvirt_call(l->link, version_fn, NULL, NULL, 0, &answer, errp);

    if (r < 0) {
        return r;
    }
    (void)snprintf(l->version, sizeof(l->version), "%s",
                   answer.text ? answer.text : "libvirt");
    free(answer.text);
    s->version = l->version;
    r = libvirt_call(l->link, uri_fn, NULL, NULL, 0, &answer, errp);
    if (r == 0) {
        l->remote = answer.text && is_remote(answer.text);
        free(answer.text);
    }
    return r;
}

static int add_disk(struct source *s, const struct libvirt_xml_disk *x,
                    struct error **errp)
{
    struct libvirt_source *l = s->opaque;
    struct libvirt_disk *more = realloc(l->disks,
                                        (s->count + 1) * sizeof(*more));

    if (!x->wanted) {
        return more || s->count == 0 ? (l->disks = more ? more : l->disks, 0)
                                     : error_nomem(errp);
    }
    if (!more) {
        return error_nomem(errp);
    }
    l->disks = more;
    more[s->count] = (struct libvirt_disk){.bitmaps = x->bitmaps};
    return source_add_disk(s, x->name, x->source, 0) ? 0 : error_nomem(errp);
}

/* It has to run: say what can be done. */
static int refuse_shut_off(const struct libvirt_source *l,
                           const struct libvirt_xml_domain *d,
                           struct error **errp)
{
    char *names = NULL;
    size_t len = 0;
    FILE *f = open_memstream(&names, &len);

    if (!f) {
        return error_nomem(errp);
    }
    for (size_t i = 0; i < d->count; i++) {
        if (d->disks[i].wanted) {
            (void)fprintf(f, " '%s'", d->disks[i].source);
        }
    }
    if (fclose(f) == 0) {
        (void)error_set(errp, ENODEV, ERROR_SHUT_OFF, l->domain, l->domain,
                        names);
    }
    free(names);
    return -ENODEV;
}

static int list_disks(struct source *s, struct error **errp)
{
    struct libvirt_source *l = s->opaque;
    struct libvirt_xml_domain d;
    struct libvirt_answer answer;
    int active = libvirt_call(l->link, is_active_fn, NULL, NULL, 0, NULL, errp);
    int r = active < 0 ? active
                       : libvirt_call(l->link, domain_xml_fn, NULL, NULL, 0,
                                      &answer, errp);

    if (r < 0) {
        return r;
    }
    r = libvirt_xml_read_domain(answer.text, &d, errp);
    if (r == 0 && !active) {
        r = refuse_shut_off(l, &d, errp);
    }
    for (size_t i = 0; r == 0 && i < d.count; i++) {
        r = add_disk(s, &d.disks[i], errp);
    }
    l->has_owner = d.has_owner;
    l->owner = d.has_owner ? d.owner : geteuid();
    l->domain_id = d.id;
    libvirt_xml_free_domain(&d);
    free(answer.text);
    return r;
}

static char *copy_or_null(const char *text)
{
    return text ? strdup(text) : NULL;
}

static int fill_options(struct libvirt_source *l, const char *what,
                        const struct source_options *o)
{
    l->domain = strdup(what);
    l->id = strdup(o->id);
    l->uri = copy_or_null(o->connect);
    l->nbd = copy_or_null(o->nbd);
    l->by_ssh = o->tunnel;
    l->scratch = copy_or_null(o->scratch);
    l->stop_fd = o->stop_fd;
    l->limit_ms = 1000 * (o->timeout_s > 0 ? o->timeout_s : LIMIT_S);
    if (asprintf(&l->mark, "/nbdelta-%s.", o->id) < 0) {
        l->mark = NULL;
    }
    return l->domain && l->id && l->mark && (!o->connect || l->uri) &&
                   (!o->nbd || l->nbd) && (!o->scratch || l->scratch)
               ? 0
               : -ENOMEM;
}

void libvirt_stay_quiet(void *opaque, virErrorPtr err)
{
    (void)opaque;
    (void)err;
}

/* What a killed run has left. */
static int take_away_left(struct libvirt_source *l, struct error **errp)
{
    int r = stop_job(l, errp);

    if (r == 0) {
        private_dir_sweep(private_dir_for_sockets(), l->id, l->owner);
    }
    if (r == 0 && !l->remote) {
        private_dir_sweep(l->scratch ? l->scratch : private_dir_for_files(),
                          l->id, l->owner);
    }
    return r;
}

static int open_libvirt(struct source *s, const char *what,
                        const struct source_options *o, struct error **errp)
{
    struct libvirt_source *l = calloc(1, sizeof(*l));

    s->opaque = l;
    if (!l || fill_options(l, what, o) < 0) {
        return error_nomem(errp);
    }
    if (!*what) {
        return error_set(errp, EINVAL, "libvirt: which domain?");
    }
    virSetErrorFunc(NULL, libvirt_stay_quiet);
    int r = frozen_init(&l->frozen, o, errp);
    r = r < 0 ? r
              : libvirt_link_new(o->connect, what, l->limit_ms, &l->link, errp);
    r = r < 0 ? r : look_at_link(s, errp);
    r = r < 0 ? r : list_disks(s, errp);
    r = r == 0 && o->adopt && !o->adopt_done ? libvirt_adopt(s, o->adopt, errp)
                                             : r;
    r = r == 0 && !s->adopted ? take_away_left(l, errp) : r;
    return r < 0 ? r : libvirt_read_sizes(s, errp);
}

/* --- Begin and end: the instant is in libvirt-begin.c --- */

static void forget_begun(struct libvirt_source *l)
{
    libvirt_tunnel_close(l->tunnel);
    l->tunnel = NULL;
    free(l->checkpoint);
    json_decref(l->identity);
    l->checkpoint = NULL;
    l->identity = NULL;
    l->job = false;
    l->fresh = false;
    private_dir_remove(&l->socket_dir);
    private_dir_remove(&l->scratch_dir);
}

/* The job ends; the new checkpoint, if it is there, goes. */
static int undo(struct source *s, struct error **errp)
{
    struct libvirt_source *l = s->opaque;
    int r = l->job ? stop_job(l, errp) : 0;

    if (l->fresh) {
        int gone = libvirt_forget(s, l->checkpoint, r < 0 ? NULL : errp);
        r = r < 0 ? r : gone;
    }
    forget_begun(l);
    return r;
}

/* What a killed run has begun goes, after all. */
static void drop_adopted(struct source *s)
{
    struct libvirt_source *l = s->opaque;

    free(l->checkpoint);
    l->checkpoint = copy_or_null(adopt_checkpoint(l->identity, l->id));
    l->fresh = l->checkpoint != NULL;
    l->job = true;
    (void)undo(s, NULL);
    (void)take_away_left(l, NULL);
}

static int begin_libvirt(struct source *s, const char *checkpoint,
                         struct error **errp)
{
    struct libvirt_source *l = s->opaque;
    int r = libvirt_check_stop(l, errp);

    if (r < 0) {
        return r;
    }
    l->checkpoint = copy_or_null(checkpoint);
    if (checkpoint && !l->checkpoint) {
        return error_nomem(errp);
    }
    r = s->adopted ? libvirt_adopt_disks(s, errp)
                   : libvirt_freeze_disks(s, errp);
    if (r < 0) {
        libvirt_link_renew(l->link);
        if (s->adopted) {
            drop_adopted(s);
        } else {
            (void)undo(s, NULL);
        }
    }
    return r;
}

/* The job is not there if the domain has ended, or somebody has aborted it. */
static int check_frozen(const struct libvirt_source *l, struct error **errp)
{
    int r = libvirt_has_job(l, l->word, errp);

    return r == 0  ? error_set(errp, EIO,
                               "the disks of '%s' were frozen no more: its "
                                "backup job has ended, or the domain has",
                               l->domain)
           : r < 0 ? r
                   : 0;
}

static int renew_libvirt(struct source *s, struct error **errp)
{
    return check_frozen(s->opaque, errp);
}

static int end_libvirt(struct source *s, bool keep, struct error **errp)
{
    struct libvirt_source *l = s->opaque;

    libvirt_link_renew(l->link);
    if (!keep) {
        return undo(s, errp);
    }
    int r = check_frozen(l, errp);
    r = r < 0 ? r : stop_job(l, errp);
    if (r == 0) {
        forget_begun(l);
    }
    return r;
}

/* --- The rest --- */

/* Without secrets.  What a running domain has only until it ends is left out,
 * as of a transient one it is all there is. */
static int describe_libvirt(struct source *s, char **xml, struct error **errp)
{
    const struct libvirt_source *l = s->opaque;
    struct libvirt_answer answer;
    int r = libvirt_call(l->link, domain_xml_fn, NULL, NULL,
                         VIR_DOMAIN_XML_INACTIVE, &answer, errp);

    *xml = answer.text;
    return r;
}

static json_t *identity_of_instant(struct source *s)
{
    const struct libvirt_source *l = s->opaque;

    return json_incref(l->identity);
}

static void close_libvirt(struct source *s)
{
    struct libvirt_source *l = s->opaque;

    if (!l) {
        return;
    }
    if (s->adopted) { /* and begin did not come */
        libvirt_link_renew(l->link);
        drop_adopted(s);
    }
    forget_begun(l);
    for (unsigned i = 0; l->disks && i < s->count; i++) {
        free(l->disks[i].scratch);
    }
    libvirt_link_free(l->link);
    frozen_free(&l->frozen);
    free(l->disks);
    free(l->domain);
    free(l->uri);
    free(l->id);
    free(l->mark);
    free(l->scratch);
    free(l->nbd);
    free(l->socket);
    free(l);
}

static const struct source_ops functions = {
    .name = "libvirt",
    .open = open_libvirt,
    .begin = begin_libvirt,
    .renew = renew_libvirt,
    .end = end_libvirt,
    .each_checkpoint = libvirt_each_checkpoint,
    .forget = libvirt_forget,
    .definition = describe_libvirt,
    .guard = libvirt_guard,
    .identity = identity_of_instant,
    .close = close_libvirt,
};

MODULE(NBDELTA_VERSION, &functions);
