/* SPDX-License-Identifier: BSD-3-Clause */
/* Points of a backup directory, and their disks: see ask.h. */
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "complete/ask.h"
#include "complete/offer.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/size.h"
#include "store/store.h"

bool ask_is_store(const char *path)
{
    CLEANUP_FREE char *dir = ask_path(path);
    CLEANUP_FREE char *file = NULL;
    struct stat st;

    if (!dir || asprintf(&file, "%s/nbdelta.json", dir) < 0) {
        file = NULL;
        return false;
    }
    return stat(file, &st) == 0 && S_ISREG(st.st_mode);
}

static struct store *open_store(const struct ask_store *a)
{
    CLEANUP_FREE char *dir = ask_path(a->dir);
    struct store *s = NULL;

    return dir && store_open(dir, STORE_READ, "complete", &s, NULL) == 0 ? s
                                                                         : NULL;
}

static void offer_point(struct offers *o, const struct store_point *p)
{
    char about[64];
    char shown[POINT_SHOWN_MAX];

    point_name_show(p->name, shown);
    if (p->manifest) {
        (void)snprintf(about, sizeof(about), "%s, %u disk%s", shown,
                       p->manifest->count, p->manifest->count == 1 ? "" : "s");
    } else {
        (void)snprintf(about, sizeof(about), "%s, damaged", shown);
    }
    offer(o, p->name, about);
}

void ask_points(struct offers *o, const void *store)
{
    const struct ask_store *a = store;
    struct store *s = open_store(a);

    if (!s) {
        return;
    }
    offer(o, "latest", "the newest point");
    for (unsigned i = store_count(s); i-- > 0;) {
        offer_point(o, store_point(s, i));
    }
    store_close(s);
}

void ask_disks(struct offers *o, const void *store)
{
    const struct ask_store *a = store;
    const struct store_point *p = NULL;
    struct store *s = open_store(a);
    char size[32];

    if (!s) {
        return;
    }
    if (store_find_point(s, a->point, &p, NULL) == 0 && p->manifest) {
        for (unsigned i = 0; i < p->manifest->count; i++) {
            const struct manifest_disk *d = &p->manifest->disks[i];

            offer(o, d->name, size_human(d->size, size, sizeof(size)));
        }
    }
    store_close(s);
}
