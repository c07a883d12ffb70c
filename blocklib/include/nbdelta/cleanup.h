/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_CLEANUP_H
#define NBDELTA_CLEANUP_H

/*
 * Variables that release what they hold when their scope ends: memory,
 * descriptors, JSON.  Never release locks so: clang's analysis does not see it
 * (thread.h).
 */
#include <jansson.h>
#include <stdlib.h>
#include <unistd.h>

static inline void cleanup_free(void *p)
{
    free(*(void **)p);
}
#define CLEANUP_FREE __attribute__((cleanup(cleanup_free)))

static inline void cleanup_close(int *fd)
{
    if (*fd >= 0) {
        (void)close(*fd);
    }
}
#define CLEANUP_CLOSE __attribute__((cleanup(cleanup_close)))

static inline void cleanup_json(json_t **j)
{
    json_decref(*j);
}
#define CLEANUP_JSON __attribute__((cleanup(cleanup_json)))

#endif /* NBDELTA_CLEANUP_H */
