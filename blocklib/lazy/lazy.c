/* SPDX-License-Identifier: BSD-3-Clause */
/* Loading libraries, and finding their functions: see lazy.h. */
#include "lazy/lazy.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

/* The first reason stays. */
static void note_failure(struct library *l)
{
    const char *text = dlerror();
    char *none = NULL;
    char *why = NULL;

    if (asprintf(&why, "%s (Debian's package %s has it)", text ? text : l->name,
                 l->package) >= 0 &&
        !atomic_compare_exchange_strong(&l->why, &none, why)) {
        free(why);
    }
}

/* Threads that come here at once get the same handle. */
static void *load(struct library *l)
{
    void *handle = atomic_load(&l->handle);

    if (!handle) {
        handle = dlopen(l->name, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
        atomic_store(&l->handle, handle);
    }
    return handle;
}

void *lazy_find(struct library *l, _Atomic(void *) *found, const char *name)
{
    void *symbol = atomic_load_explicit(found, memory_order_acquire);

    if (!symbol) {
        void *handle = load(l);

        symbol = handle ? dlsym(handle, name) : NULL;
        if (!symbol) {
            note_failure(l);
        }
        atomic_store(found, symbol);
    }
    return symbol;
}

const char *lazy_why(struct library *l)
{
    const char *why = atomic_load(&l->why);

    return why ? why : l->name;
}
