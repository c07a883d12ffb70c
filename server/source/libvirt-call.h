/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_SOURCE_LIBVIRT_CALL_H
#define NBDELTA_SERVER_SOURCE_LIBVIRT_CALL_H

/*
 * Calls of libvirt that end in time
 * =================================
 *
 * libvirt's functions wait for as long as its daemon, or QEMU behind it, does
 * not answer.  So each call runs in a thread of its own.  The caller waits for
 * that thread up to a limit, and leaves it alone afterwards.
 *
 * A link is a connection to a daemon, with one domain.  It connects when it is
 * first used, and again after the connection was lost.  One thread at a time
 * uses a link.
 */
#include <libvirt/libvirt.h>
#include <libvirt/virterror.h>
#include <stdbool.h>
#include <stdint.h>

struct error;
struct libvirt_link;

/* What a function is told, and what it answers. */
struct libvirt_args {
    const char *a; /* NULL: none */
    const char *b;
    unsigned flags;

    char *text; /* malloc()ed; NULL: none */
    uint64_t number;
    virErrorPtr why; /* of virSaveLastError(), before other calls forget it */
};

/* Runs in a thread of its own.  Negative: libvirt's last error of this thread
 * says why.  Looks at nothing but its arguments. */
typedef int libvirt_fn(virDomainPtr domain, struct libvirt_args *args);

struct libvirt_answer {
    char *text; /* the caller frees it */
    uint64_t number;
    int code; /* libvirt's, after a failure; 0: the failure is not libvirt's */
};

/* @uri NULL: libvirt's default.  @domain: a name or UUID. */
int libvirt_link_new(const char *uri, const char *domain, unsigned limit_ms,
                     struct libvirt_link **lp, struct error **errp);
void libvirt_link_free(struct libvirt_link *l); /* NULL is fine */

/*
 * Run @fn with copies of @a and @b, and wait for it.  What @fn has returned
 * (0 and up), or an error with libvirt's words:
 *   -ETIMEDOUT   no answer within the limit.  Calls fail at once from then on,
 *                until libvirt_link_renew()
 *   -ENOENT      no such domain, checkpoint, backup
 *   -ESTALE      a checkpoint has no bitmap, or nobody can trust it
 *   -ECONNRESET  no connection; only after the limit, if there was one before
 *   -EBUSY, -EACCES, -ENOTSUP, -EIO
 * A connection that is lost is made anew, and @fn runs again: so it must not
 * mind.  @answer may be NULL.
 */
int libvirt_call(struct libvirt_link *l, libvirt_fn *fn, const char *a,
                 const char *b, unsigned flags, struct libvirt_answer *answer,
                 struct error **errp);

/* The same, for an @fn that minds. */
int libvirt_call_once(struct libvirt_link *l, libvirt_fn *fn, const char *a,
                      const char *b, unsigned flags,
                      struct libvirt_answer *answer, struct error **errp);

/* Try again after -ETIMEDOUT, with a new connection. */
void libvirt_link_renew(struct libvirt_link *l);

/* How long the calls that follow may take. */
void libvirt_link_limit(struct libvirt_link *l, unsigned limit_ms);

#endif /* NBDELTA_SERVER_SOURCE_LIBVIRT_CALL_H */
