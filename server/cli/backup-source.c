/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A directory belongs to one source: a wrong word on the command line mixes no
 * two machines in it.  Any of these says that the source is that of the last
 * point:
 *
 *   a checkpoint of this directory is there
 *   the domain has the UUID that it had (POINT.xml)
 *   both have the same name, or are the same file
 *
 * Where both domains' UUIDs are known, the name says nothing.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/backup-priv.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"

#define DEFINITION_MAX (16 * MiB)
#define UUID_BYTES     36

char *run_name_source(const char *given)
{
    CLEANUP_FREE char *here = NULL;
    char *name = NULL;
    struct stat st;

    if (given[0] == '/' || stat(given, &st) < 0 || !(here = getcwd(NULL, 0))) {
        return strdup(given);
    }
    return asprintf(&name, "%s/%s", here, given) < 0 ? NULL : name;
}

static bool same_file(const char *a, const char *b)
{
    struct stat x;
    struct stat y;

    return stat(a, &x) == 0 && stat(b, &y) == 0 &&
           ((x.st_dev == y.st_dev && x.st_ino == y.st_ino) ||
            (S_ISBLK(x.st_mode) && S_ISBLK(y.st_mode) &&
             x.st_rdev == y.st_rdev));
}

/* In libvirt's text the domain's own comes first; NULL: there is none. */
static const char *find_uuid(const char *xml)
{
    const char *at = xml ? strstr(xml, "<uuid>") : NULL;

    at = at ? at + strlen("<uuid>") : NULL;
    return at && strspn(at, "0123456789abcdef-") == UUID_BYTES ? at : NULL;
}

/* 1: both are the same domain; 0: they are two; -1: nobody knows. */
static int same_domain(struct run *r, const struct manifest *m)
{
    CLEANUP_FREE char *before = NULL;
    CLEANUP_FREE char *now = NULL;
    char name[POINT_NAME_MAX + 8];
    size_t length = 0;

    (void)snprintf(name, sizeof(name), "%s.xml", m->name);
    if (!m->xml_hash[0] ||
        store_get_file(r->store, name, DEFINITION_MAX, &before, &length, NULL) <
            0 ||
        source_definition(r->source, &now, NULL) < 0) {
        return -1;
    }
    const char *a = find_uuid(before);
    const char *b = find_uuid(now);
    return a && b ? strncmp(a, b, UUID_BYTES) == 0 : -1;
}

/* The newest point that says where it came from. */
static const struct manifest *last_manifest(const struct store *s)
{
    const struct store_point *p = store_pending(s);

    if (p && p->manifest) {
        return p->manifest;
    }
    for (unsigned i = store_count(s); i > 0; i--) {
        p = store_point(s, i - 1);
        if (p->manifest) {
            return p->manifest;
        }
    }
    return NULL;
}

int run_check_source(struct run *r, bool has_checkpoint, struct error **errp)
{
    const struct manifest *m = last_manifest(r->store);

    if (r->o->new_source || has_checkpoint || !m || !m->source) {
        return 0;
    }
    CLEANUP_FREE char *now = run_name_source(r->o->source_name);
    if (!now) {
        return error_nomem(errp);
    }
    int domain = same_domain(r, m);
    if (domain > 0 || (domain < 0 && (strcmp(now, m->source) == 0 ||
                                      same_file(now, m->source)))) {
        return 0;
    }
    return error_set(errp, EINVAL,
                     "'%s' has points of %s'%s', and '%s' is another source: "
                     "name another directory, or go on with --new-source",
                     store_path(r->store),
                     domain == 0 ? "another machine, " : "", m->source, now);
}
