/* SPDX-License-Identifier: BSD-3-Clause */
/* Damage of earlier points is healed from the frozen disks, before it is
 * decided what the new point has: over a parent that is right again there can
 * be an increment. */
#include <errno.h>
#include <inttypes.h>
#include <poll.h>

#include "cli/backup-priv.h"
#include "log/log.h"
#include "nbdelta/blk.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "nbdelta/thread.h"
#include "store/heal.h"

struct healer {
    struct run *run;
    uint64_t renewed; /* ns */
};

/* For heal_disk. */
static int tick(void *opaque, struct error **errp)
{
    struct healer *h = opaque;
    struct pollfd fd = {.fd = h->run->o->how.stop_fd, .events = POLLIN};

    if (poll(&fd, 1, 0) > 0) {
        return error_set(errp, ECANCELED, "interrupted: no point was made");
    }
    if (now_ns() - h->renewed > SOURCE_RENEW_S * UINT64_C(1000000000)) {
        h->renewed = now_ns();
        return source_renew(h->run->source, errp);
    }
    return 0;
}

/* Once: cron's mail says what has become of what verify has told. */
static void tell(const char *disk, const struct heal_result *result)
{
    uint64_t lost = result->files - result->whole;

    if (result->whole > 0) {
        log_line(TELL_WARNING,
                 "disk '%s': %" PRIu64 " damaged file%s healed from the source",
                 disk, result->whole, result->whole == 1 ? " was" : "s were");
    }
    if (lost > 0) {
        log_line(TELL_WARNING,
                 "disk '%s': %" PRIu64
                 " damaged file%s lost data for good: the "
                 "source has other bytes by now",
                 disk, lost, lost == 1 ? " has" : "s have");
    }
}

static int heal_from(struct run *r, const struct source_disk *d, struct node *n,
                     struct error **errp)
{
    struct healer h = {.run = r, .renewed = now_ns()};
    struct heal_result result = {.files = 0};
    struct blk *b = NULL;
    int c = blk_new(r->graph, n, PERM_READ, PERM_ALL, "heal", &b, errp);

    c = c < 0 ? c : heal_disk(r->store, d->name, b, tick, &h, &result, errp);
    blk_free(b);
    tell(d->name, &result);
    return c;
}

int run_heal(struct run *r, struct error **errp)
{
    int c = 0;

    for (unsigned i = 0; c == 0 && i < r->count; i++) {
        const struct source_disk *d = r->disks[i];
        struct node *n = NULL;

        if (!heal_wanted(r->store, d->name)) {
            continue;
        }
        c = graph_open(r->graph, d->options, &n, errp);
        if (c == 0) {
            c = heal_from(r, d, n, errp);
            graph_forget(r->graph, n);
        }
    }
    return c;
}
