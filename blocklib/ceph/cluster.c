/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Connections to clusters.
 *
 * A connection has a dozen threads, so images share one where all that says how
 * to get there is the same.  One thread connects, the others wait for it; they
 * would wait for the cluster anyway.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "ceph/priv.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/list.h"
#include "nbdelta/thread.h"

struct cluster {
    rados_t rados;
    char *way;

    /* Guarded by lock. */
    struct list link;
    unsigned refs;
    bool given_up; /* it is in no list */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct list clusters = {&clusters, &clusters};

/* --- The way --- */

/* Append @text (or that there is none) to *@way, with its length. */
static int add_word(char **way, const char *text)
{
    char *longer;
    int len = text ? asprintf(&longer, "%s%zu:%s,", *way, strlen(text), text)
                   : asprintf(&longer, "%s-,", *way);

    if (len < 0) {
        return -ENOMEM;
    }
    free(*way);
    *way = longer;
    return 0;
}

/* All that decides which connection it is, as one text.  NULL: no memory. */
static char *way_to(const struct ceph_place *p)
{
    const char *const words[] = {p->conf, p->user, p->key,
                                 p->auth_client_required, p->mon_host};
    char *way = strdup(p->cache ? "cache," : "direct,");
    int r = way ? 0 : -ENOMEM;

    for (size_t i = 0; r == 0 && i < sizeof(words) / sizeof(*words); i++) {
        r = add_word(&way, words[i]);
    }
    for (size_t i = 0; r == 0 && i < p->pair_count; i++) {
        r = add_word(&way, p->pairs[i]);
    }
    if (r < 0) {
        free(way);
        way = NULL;
    }
    return way;
}

/* --- Connecting --- */

static int set(rados_t rados, const char *name, const char *value,
               struct error **errp)
{
    int r = value ? rados_conf_set(rados, name, value) : 0;

    return r < 0 ? error_set(errp, -r, "Could not set '%s': %s", name,
                             strerror(-r))
                 : 0;
}

static int configure(rados_t rados, const struct ceph_place *p,
                     struct error **errp)
{
    int r = rados_conf_read_file(rados, p->conf);

    if (r < 0 && p->conf) {
        return error_set(errp, -r, "error reading conf file %s: %s", p->conf,
                         strerror(-r));
    }
    r = 0;
    for (size_t i = 0; r == 0 && i + 1 < p->pair_count; i += 2) {
        r = rados_conf_set(rados, p->pairs[i], p->pairs[i + 1]);
        if (r < 0) {
            return error_set(errp, EINVAL, "invalid conf option %s: %s",
                             p->pairs[i], strerror(-r));
        }
    }
    if ((r = set(rados, "mon_host", p->mon_host, errp)) < 0 ||
        (r = set(rados, "key", p->key, errp)) < 0 ||
        (r = set(rados, "auth_client_required", p->auth_client_required,
                 errp)) < 0) {
        return r;
    }
    return set(rados, "rbd_cache", p->cache ? "true" : "false", errp);
}

static int connect_to(rados_t *rados, const struct ceph_place *p,
                      struct error **errp)
{
    int r = rados_create(rados, p->user);

    if (r < 0) {
        return error_set(errp, -r, "error initializing: %s", strerror(-r));
    }
    r = configure(*rados, p, errp);
    if (r == 0 && (r = rados_connect(*rados)) < 0) {
        (void)error_set(errp, -r, "error connecting: %s", strerror(-r));
    }
    if (r < 0) {
        rados_shutdown(*rados);
    }
    return r;
}

/* --- The list --- */

static struct cluster *find_locked(const char *way)
{
    list_for_each (at, &clusters) {
        struct cluster *c = list_entry(at, struct cluster, link);

        if (strcmp(c->way, way) == 0) {
            c->refs++;
            return c;
        }
    }
    return NULL;
}

static int connect_locked(const struct ceph_place *p, char **way,
                          struct cluster **clusterp, struct error **errp)
{
    struct cluster *c = calloc(1, sizeof(*c));

    if (!c) {
        return error_nomem(errp);
    }
    int r = connect_to(&c->rados, p, errp);
    if (r < 0) {
        free(c);
        return r;
    }
    c->refs = 1;
    c->way = *way;
    *way = NULL;
    list_append(&clusters, &c->link);
    *clusterp = c;
    return 0;
}

int cluster_get(const struct ceph_place *p, struct cluster **clusterp,
                struct error **errp)
{
    CLEANUP_FREE char *way = way_to(p);
    int r = 0;

    if (!way) {
        return error_nomem(errp);
    }
    (void)pthread_mutex_lock(&lock);
    *clusterp = find_locked(way);
    if (!*clusterp) {
        r = connect_locked(p, &way, clusterp, errp);
    }
    (void)pthread_mutex_unlock(&lock);
    return r;
}

void cluster_put(struct cluster *c)
{
    (void)pthread_mutex_lock(&lock);
    bool last = --c->refs == 0;
    if (last && !c->given_up) {
        list_remove(&c->link);
    }
    (void)pthread_mutex_unlock(&lock);
    if (last) {
        rados_shutdown(c->rados);
        explicit_bzero(c->way, strlen(c->way)); /* it has the key */
        free(c->way);
        free(c);
    }
}

void cluster_give_up(struct cluster *c)
{
    (void)pthread_mutex_lock(&lock);
    if (!c->given_up) {
        c->given_up = true;
        list_remove(&c->link);
    }
    (void)pthread_mutex_unlock(&lock);
}

int cluster_ready(struct cluster *c)
{
    return rados_wait_for_latest_osdmap(c->rados);
}

uint64_t cluster_client(struct cluster *c)
{
    return rados_get_instance_id(c->rados);
}

/* --- Pools --- */

static int check_namespace(rados_ioctx_t io, const char *name,
                           struct error **errp)
{
    bool exists = true;
    int r = name && *name ? rbd_namespace_exists(io, name, &exists) : 0;

    if (r < 0) {
        return error_set(errp, -r, "error checking namespace: %s",
                         strerror(-r));
    }
    return exists
               ? 0
               : error_set(errp, ENOENT, "namespace '%s' does not exist", name);
}

int cluster_pool(struct cluster *c, const struct ceph_place *p,
                 rados_ioctx_t *io, struct error **errp)
{
    int r = rados_ioctx_create(c->rados, p->pool, io);

    if (r < 0) {
        return error_set(errp, -r, "error opening pool %s: %s", p->pool,
                         strerror(-r));
    }
    r = check_namespace(*io, p->namespace, errp);
    if (r < 0) {
        rados_ioctx_destroy(*io);
        return r;
    }
    rados_ioctx_set_namespace(*io, p->namespace);
    /* In a pool that is full a request may try: it fails, or needs no room.
     * The cache has acknowledged what it writes, so that waits for room. */
    if (!p->cache) {
        rados_set_pool_full_try(*io);
    }
    return 0;
}
