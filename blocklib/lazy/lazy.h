/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_LAZY_LAZY_H
#define NBDELTA_LAZY_LAZY_H

/*
 * Libraries that are loaded when one of their functions is first called
 * =====================================================================
 *
 * libnbd and gnutls bring fifteen libraries with them, and most daemons need
 * neither.  So we link with neither.  Each of their functions that we use has a
 * function of ours of the same name, type and meaning, which finds theirs and
 * calls it:
 *
 *     caller --> nbd_create of ours --first call--> dlopen, dlsym
 *                        |                                |
 *                        +--------> nbd_create of libnbd <+
 *
 * The compiler holds ours against their headers; the linker tells what has no
 * function yet ("undefined reference").
 *
 * Where a library cannot be loaded its functions fail as they do otherwise:
 * they return an error or NULL, and the one that puts an error into words has
 * the reason.  So callers need not think of it.  A library stays loaded.  Any
 * thread may call, with any lock.
 */
#include <stdatomic.h>

struct library {
    const char *name;    /* its soname */
    const char *package; /* Debian's, to be told where it is missing */
    _Atomic(void *) handle;
    _Atomic(char *) why; /* it could not be loaded */
};

/* The symbol @name of @l, which is kept in *found.  NULL: there is none. */
void *lazy_find(struct library *l, _Atomic(void *) *found, const char *name);

/* Why lazy_find() has failed.  It stays until the process ends. */
const char *lazy_why(struct library *l);

/* A function of `library`; the result is @fail where it is not there. */
#define LAZY(type, fail, name, params, ...)                      \
    type name params                                             \
    {                                                            \
        static _Atomic(void *) found;                            \
        void *f = lazy_find(&library, &found, #name);            \
                                                                 \
        return f ? ((__typeof__(&name))f)(__VA_ARGS__) : (fail); \
    }

#define LAZY_VOID(name, params, ...)                  \
    void name params                                  \
    {                                                 \
        static _Atomic(void *) found;                 \
        void *f = lazy_find(&library, &found, #name); \
                                                      \
        if (f) {                                      \
            ((__typeof__(&name))f)(__VA_ARGS__);      \
        }                                             \
    }

#endif /* NBDELTA_LAZY_LAZY_H */
