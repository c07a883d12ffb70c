/* SPDX-License-Identifier: BSD-3-Clause */
/* Metrics of a backup directory: see points-check.h. */
#include "cli/points-check.h"
#include "cli/prom.h"
#include "nbdelta/bytes.h"
#include "store/health.h"
#include "store/store.h"

struct metric {
    struct prom_family family;
    int64_t value;
    bool known; /* else there is no sample */
};

static void write_health(struct prom *p, const struct store_health *h)
{
    const struct metric all[] = {
        {{"points", PROM_GAUGE, "Points whose manifests can be used."},
         h->points,
         true},
        {{"unreadable_points", PROM_GAUGE,
          "Points whose manifests cannot be used."},
         h->unreadable,
         true},
        {{"incomplete_points", PROM_GAUGE,
          "Points that lack a file, or what they were made over."},
         h->incomplete,
         true},
        {{"damaged_points", PROM_GAUGE,
          "Points in which a verification found damage."},
         h->damaged,
         true},
        {{"damages", PROM_GAUGE, "Ranges that a verification found damaged."},
         (int64_t)h->damages,
         true},
        {{"latest_point_timestamp_seconds", PROM_GAUGE,
          "When the latest point was made."},
         h->latest,
         h->points > 0},
        {{"oldest_point_timestamp_seconds", PROM_GAUGE,
          "When the oldest point was made."},
         h->oldest,
         h->points > 0},
        {{"verified_timestamp_seconds", PROM_GAUGE,
          "Since then all points were verified, or made."},
         h->verified,
         h->points > 0},
        {{"pending", PROM_GAUGE, "1: a point waits for its source."},
         h->pending,
         true},
        {{"prune_unfinished", PROM_GAUGE, "1: a prune works, or did not end."},
         h->pruning > 0,
         true},
    };

    for (size_t i = 0; i < ARRAY_SIZE(all); i++) {
        prom_begin(p, &all[i].family);
        if (all[i].known) {
            prom_sample(p, NULL, (double)all[i].value);
        }
    }
}

/* The latest point of which the manifest can be used, or NULL. */
static const struct manifest *latest_manifest(const struct store *s)
{
    const struct manifest *m = NULL;

    for (unsigned i = store_count(s); !m && i > 0; i--) {
        m = store_point(s, i - 1)->manifest;
    }
    return m;
}

static uint64_t size_of(const struct manifest_disk *d)
{
    return d->size;
}

static uint64_t read_of(const struct manifest_disk *d)
{
    return d->read;
}

static uint64_t written_of(const struct manifest_disk *d)
{
    return d->written;
}

static uint64_t is_full(const struct manifest_disk *d)
{
    return d->kind == DISK_FULL;
}

static uint64_t milliseconds_of(const struct manifest_disk *d)
{
    return d->milliseconds;
}

static void write_disks(struct prom *p, const struct manifest *m)
{
    static const struct {
        struct prom_family family;
        uint64_t (*value)(const struct manifest_disk *d);
        double unit;
    } all[] = {
        {{"disk_size_bytes", PROM_GAUGE,
          "The disk's size in the latest point."},
         size_of,
         1},
        {{"disk_read_bytes", PROM_GAUGE,
          "What the latest point read of the disk."},
         read_of,
         1},
        {{"disk_written_bytes", PROM_GAUGE,
          "The data in the latest point's file."},
         written_of,
         1},
        {{"disk_seconds", PROM_GAUGE,
          "How long the latest copy of the disk took."},
         milliseconds_of,
         1000},
        {{"disk_full", PROM_GAUGE, "1: the latest point has the whole disk."},
         is_full,
         1},
    };

    for (size_t k = 0; k < ARRAY_SIZE(all); k++) {
        prom_begin(p, &all[k].family);
        for (unsigned i = 0; i < m->count; i++) {
            const struct prom_label labels[] = {{"disk", m->disks[i].name},
                                                {NULL, NULL}};

            prom_sample(p, labels,
                        (double)all[k].value(&m->disks[i]) / all[k].unit);
        }
    }
}

struct source {
    const char *dir;
    const struct store *store;
    const struct store_health *health;
};

static int write_all(FILE *f, void *opaque)
{
    static const struct prom_family readable = {
        "readable", PROM_GAUGE,
        "0: the backup directory could not be looked at."};
    const struct source *s = opaque;
    const struct manifest *m = s->store ? latest_manifest(s->store) : NULL;
    struct prom p = {
        .f = f, .prefix = "nbdelta_backup_", .common = {"directory", s->dir}};

    prom_begin(&p, &readable);
    prom_count(&p, NULL, s->health != NULL);
    if (s->health) {
        write_health(&p, s->health);
    }
    if (m) {
        write_disks(&p, m);
    }
    return prom_end(&p);
}

int metrics_write(const char *file, const char *dir, const struct store *s,
                  const struct store_health *h, struct error **errp)
{
    struct source source = {dir, s, h};

    return prom_to_file(file, write_all, &source, errp);
}
