/* SPDX-License-Identifier: BSD-3-Clause */
/* The list of a source's disks: what modules have a copy of, too. */
#include <stdlib.h>
#include <string.h>

#include "source/source.h"

struct source_disk *source_add_disk(struct source *s, const char *name,
                                    const char *image, uint64_t size)
{
    bool keep = image && *image && strlen(image) <= SOURCE_IMAGE_MAX;
    struct source_disk *more = realloc(s->disks,
                                       (s->count + 1) * sizeof(*more));
    char *copy = more ? strdup(name) : NULL;
    char *where = copy && keep ? strdup(image) : NULL;

    if (more) {
        s->disks = more;
    }
    if (!copy || (keep && !where)) {
        free(copy);
        return NULL;
    }
    more[s->count] =
        (struct source_disk){.name = copy, .image = where, .size = size};
    return &more[s->count++];
}

bool source_has_map(const struct source_disk *d)
{
    return d->dirty || d->bitmap || d->told;
}

struct source_disk *source_find(const struct source *s, const char *name)
{
    for (unsigned i = 0; i < s->count; i++) {
        if (strcmp(s->disks[i].name, name) == 0) {
            return &s->disks[i];
        }
    }
    return NULL;
}
