/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_NET_PAGES_H
#define NBDELTA_SERVER_NET_PAGES_H

/*
 * Buffers in whole pages.  They are not malloc()ed, because malloc often keeps
 * freed memory in its arenas, and this memory has to leave the process when
 * a connection falls idle.
 */
#include <stddef.h>
#include <sys/mman.h>

/* NULL: no memory. */
static inline void *pages_new(size_t bytes)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

/* NULL is fine. */
static inline void pages_free(void *p, size_t bytes)
{
    if (p) {
        (void)munmap(p, bytes);
    }
}

#endif /* NBDELTA_SERVER_NET_PAGES_H */
