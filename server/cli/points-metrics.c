/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Metrics of a backup directory, for node_exporter's textfile collector: see
 * points-check.h.
 *
 *     FILE.PID.tmp   written, flushed  --rename-->  FILE
 *
 * The collector reads names that end in .prom, and so never half a file.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/points-check.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/text.h"
#include "store/health.h"
#include "store/store.h"

#define PREFIX "nbdelta_backup_"

/* A label's value: escaped, and UTF-8, as Prometheus wants it. */
static char *label(const char *value)
{
    CLEANUP_FREE char *text = text_as_utf8(value);
    char *out = text ? malloc(2 * strlen(text) + 1) : NULL;
    char *to = out;

    for (const char *p = text; out && *p; p++) {
        if (*p == '\\' || *p == '"' || *p == '\n') {
            *to++ = '\\';
        }
        *to++ = (char)(*p == '\n' ? 'n' : *p);
    }
    if (out) {
        *to = '\0';
    }
    return out;
}

static void describe(FILE *f, const char *name, const char *help)
{
    (void)fprintf(f, "# HELP " PREFIX "%s %s\n# TYPE " PREFIX "%s gauge\n",
                  name, help, name);
}

struct metric {
    const char *name;
    const char *help;
    int64_t value;
    bool known; /* else there is no sample */
};

static void write_health(FILE *f, const char *dir, const struct store_health *h)
{
    const struct metric all[] = {
        {"points", "Points whose manifests can be used.", h->points, true},
        {"unreadable_points", "Points whose manifests cannot be used.",
         h->unreadable, true},
        {"incomplete_points",
         "Points that lack a file, or what they were made over.", h->incomplete,
         true},
        {"damaged_points", "Points in which a verification found damage.",
         h->damaged, true},
        {"damages", "Ranges that a verification found damaged.",
         (int64_t)h->damages, true},
        {"latest_point_timestamp_seconds", "When the latest point was made.",
         h->latest, h->points > 0},
        {"oldest_point_timestamp_seconds", "When the oldest point was made.",
         h->oldest, h->points > 0},
        {"verified_timestamp_seconds",
         "Since then all points were verified, or made.", h->verified,
         h->points > 0},
        {"pending", "1: a point waits for its source.", h->pending, true},
        {"prune_unfinished", "1: a prune works, or did not end.",
         h->pruning > 0, true},
    };

    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        describe(f, all[i].name, all[i].help);
        if (all[i].known) {
            (void)fprintf(f, PREFIX "%s{directory=\"%s\"} %" PRId64 "\n",
                          all[i].name, dir, all[i].value);
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

static int write_disks(FILE *f, const char *dir, const struct manifest *m)
{
    static const struct {
        const char *name;
        const char *help;
        uint64_t (*value)(const struct manifest_disk *d);
        double unit;
    } all[] = {
        {"disk_size_bytes", "The disk's size in the latest point.", size_of, 1},
        {"disk_read_bytes", "What the latest point read of the disk.", read_of,
         1},
        {"disk_written_bytes", "The data in the latest point's file.",
         written_of, 1},
        {"disk_seconds", "How long the latest copy of the disk took.",
         milliseconds_of, 1000},
        {"disk_full", "1: the latest point has the whole disk.", is_full, 1},
    };

    for (size_t k = 0; k < sizeof(all) / sizeof(all[0]); k++) {
        describe(f, all[k].name, all[k].help);
        for (unsigned i = 0; i < m->count; i++) {
            CLEANUP_FREE char *disk = label(m->disks[i].name);

            if (!disk) {
                return -ENOMEM;
            }
            (void)fprintf(f, PREFIX "%s{directory=\"%s\",disk=\"%s\"} %.15g\n",
                          all[k].name, dir, disk,
                          (double)all[k].value(&m->disks[i]) / all[k].unit);
        }
    }
    return 0;
}

static int write_all_metrics(FILE *f, const char *dir, const struct store *s,
                             const struct store_health *h)
{
    CLEANUP_FREE char *name = label(dir);
    const struct manifest *m = s ? latest_manifest(s) : NULL;

    if (!name) {
        return -ENOMEM;
    }
    describe(f, "readable", "0: the backup directory could not be looked at.");
    (void)fprintf(f, PREFIX "readable{directory=\"%s\"} %d\n", name, h != NULL);
    if (h) {
        write_health(f, name, h);
    }
    return m ? write_disks(f, name, m) : 0;
}

/* Its mode does not come from the umask of cron. */
static int flush_metrics(FILE *f)
{
    if (fflush(f) != 0 || fchmod(fileno(f), 0644) < 0 || fsync(fileno(f)) < 0) {
        return -errno;
    }
    return ferror(f) ? -EIO : 0;
}

int metrics_write(const char *file, const char *dir, const struct store *s,
                  const struct store_health *h, struct error **errp)
{
    CLEANUP_FREE char *tmp = NULL;

    if (asprintf(&tmp, "%s.%d.tmp", file, (int)getpid()) < 0) {
        tmp = NULL;
        return error_nomem(errp);
    }
    (void)unlink(tmp); /* of a process of the same number that was killed */
    int fd = open(tmp, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC,
                  0644);
    FILE *f = fd < 0 ? NULL : fdopen(fd, "w");
    int r = f ? write_all_metrics(f, dir, s, h) : -errno;
    r = r < 0 ? r : flush_metrics(f);
    if (f && fclose(f) != 0 && r == 0) {
        r = -errno;
    } else if (!f && fd >= 0) {
        (void)close(fd);
    }
    if (r == 0 && rename(tmp, file) < 0) {
        r = -errno;
    }
    if (r < 0 && fd >= 0) {
        (void)unlink(tmp);
    }
    return r < 0 ? error_set(errp, -r, "cannot write '%s': %s", file,
                             strerror(-r))
                 : 0;
}
