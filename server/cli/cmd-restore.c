/* SPDX-License-Identifier: BSD-3-Clause */
/* nbdelta restore: disks of a backup point, written to images or devices. */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/commands.h"
#include "cli/progress.h"
#include "cli/restore-target.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "store/restore.h"
#include "store/store.h"

enum { OPT_PARTIAL = CLI_LONG, OPT_FORCE, OPT_PROGRESS };

static const struct cli_option option_table[] = {
    {"format", 'f', "FORMAT",
     "format of the targets: qcow2 or raw; else their names tell"},
    {"force", OPT_FORCE, NULL, "also to targets that are not empty"},
    {"partial", OPT_PARTIAL, NULL,
     "go past damage: write zeroes there, and print where"},
    {"progress", OPT_PROGRESS, "json", "print a JSON line a second on stderr"},
    {NULL, 0, NULL, NULL},
};

static const struct cli_command command = {
    .name = "restore",
    .usage = "[--partial] [--force] [-f FORMAT] [--progress=json] "
             "DIR[@POINT]\n"
             "[DISK[=TARGET]]...",
    .about =
        "Restore disks as they were at POINT (default: latest) from the\n"
        "backup directory DIR; all disks if none is named.  TARGET is a\n"
        "file, qcow2 if its name ends in .qcow2 and else raw, a block\n"
        "device, an NBD URI, or an image of Ceph (rbd:POOL/IMAGE), which\n"
        "is made if it is not there (default: DISK.qcow2).  All that is\n"
        "read is verified.  Only what differs is written to a target that\n"
        "is there already.\n",
    .options = option_table,
    .operands = "DIR[@POINT] DISK[=TARGET]...",
};

/* Requests in flight to a server far away. */
#define REMOTE_THREADS 16

struct part {
    const struct manifest_disk *disk;
    char *name; /* of the target */
    struct restore_target target;
    bool kept;
};

struct request {
    const char *format;
    bool force;
    bool partial;
    const char *progress; /* the argument, or NULL */
    struct store *store;
    struct graph *graph;
    const struct store_point *point;
    struct part *parts;
    unsigned count;
    bool progress_json;

    /* What is told of progress. */
    struct restore_result result; /* of the disk that is being restored */
    uint64_t size;
    uint64_t before; /* bytes of disks that are done */
    uint64_t total;  /* bytes of all disks */
};

/* --- Signals: the first ends it in order, the second at once --- */

static _Atomic bool stop;

static void note_signal(int signo)
{
    (void)signo;
    atomic_store(&stop, true);
}

static void watch_signals(void)
{
    static const int signals[] = {SIGINT, SIGTERM, SIGHUP};
    struct sigaction now = {.sa_handler = note_signal,
                            .sa_flags = SA_RESETHAND | SA_RESTART};

    for (size_t i = 0; i < sizeof(signals) / sizeof(signals[0]); i++) {
        struct sigaction was;

        /* What the parent has ignored (nohup) stays so. */
        if (sigaction(signals[i], NULL, &was) == 0 &&
            was.sa_handler != SIG_IGN) {
            (void)sigaction(signals[i], &now, NULL);
        }
    }
}

/* --- What is asked for --- */

static int status_of(int r)
{
    return r == -ENOENT || r == -EINVAL ? CLI_NONE : cli_status(r);
}

static int find_point(struct request *rq, const char *arg)
{
    CLEANUP_ERROR struct error *err = NULL;
    CLEANUP_FREE char *dir = NULL;
    const char *word = NULL;

    if (point_name_split(arg, &dir, &word, &err) < 0) {
        return cli_usage(&command, "%s", error_message(err));
    }
    int r = store_open(dir, STORE_READ, command.name, &rq->store, &err);
    if (r < 0) {
        return cli_error(command.name, err);
    }
    r = store_find_point(rq->store, word, &rq->point, &err);
    if (r < 0) {
        (void)cli_error(command.name, err);
        return status_of(r);
    }
    return 0;
}

static int add_part(struct request *rq, const struct manifest_disk *d,
                    const char *target)
{
    struct part *parts = realloc(rq->parts,
                                 (rq->count + 1) * sizeof(*rq->parts));
    if (!parts) {
        return cli_failed(command.name, "no memory");
    }
    rq->parts = parts;
    struct part *p = &parts[rq->count];
    *p = (struct part){.disk = d, .target = {.alone = -1}};
    if (target) {
        p->name = strdup(target);
    } else if (asprintf(&p->name, "%s.qcow2", d->name) < 0) {
        p->name = NULL;
    }
    if (!p->name) {
        return cli_failed(command.name, "no memory");
    }
    rq->count++;
    for (unsigned i = 0; i + 1 < rq->count; i++) {
        if (strcmp(parts[i].name, p->name) == 0) {
            return cli_usage(&command, "two disks cannot have the target '%s'",
                             p->name);
        }
    }
    return 0;
}

/* DISK or DISK=TARGET; a disk's name may have an '=' in it. */
static int take_disk(struct request *rq, const char *arg)
{
    const struct manifest *m = rq->point->manifest;
    const struct manifest_disk *d = manifest_find(m, arg);
    const char *equals = arg;

    if (d) {
        return add_part(rq, d, NULL);
    }
    while (!d && (equals = strchr(equals, '=')) != NULL) {
        CLEANUP_FREE char *name = strndup(arg, (size_t)(equals - arg));
        d = name ? manifest_find(m, name) : NULL;
        equals++;
    }
    if (!d) {
        (void)cli_failed(command.name, "point %s has no disk '%.*s'",
                         rq->point->name, (int)strcspn(arg, "="), arg);
        return CLI_NONE;
    }
    return *equals ? add_part(rq, d, equals)
                   : cli_usage(&command, "'%s': which target?", arg);
}

static int take_disks(struct request *rq, int argc, char **argv)
{
    const struct manifest *m = rq->point->manifest;
    int status = 0;

    for (int i = 0; status == 0 && i < argc; i++) {
        status = take_disk(rq, argv[i]);
    }
    for (unsigned i = 0; status == 0 && argc == 0 && i < m->count; i++) {
        status = add_part(rq, &m->disks[i], NULL);
    }
    return status;
}

/* --- Restoring --- */

/* Before anything is written to any of them. */
static int open_targets(struct request *rq)
{
    for (unsigned i = 0; i < rq->count; i++) {
        CLEANUP_ERROR struct error *err = NULL;
        struct part *p = &rq->parts[i];

        p->target = (struct restore_target){
            .name = p->name,
            .format = rq->format,
            .size = p->disk->size,
            .store = store_path(rq->store),
            .force = rq->force,
            .alone = -1,
        };
        int r = target_open(rq->graph, &p->target, &err);
        if (r < 0) {
            return cli_error(command.name, err);
        }
    }
    return 0;
}

static double done_of(void *opaque)
{
    struct request *rq = opaque;

    return rq->size ? (double)atomic_load(&rq->result.done) / (double)rq->size
                    : 1;
}

static void bytes_of(void *opaque, uint64_t *done, uint64_t *total)
{
    struct request *rq = opaque;

    *done = rq->before + atomic_load(&rq->result.done);
    *total = rq->total;
}

/* The map of what could not be restored, for programs, too. */
static void tell_damage(const struct damage *d, void *opaque)
{
    const struct request *rq = opaque;

    if (rq->partial) {
        printf("%s %" PRIu64 " %" PRIu64 " %s: %s\n", d->disk, d->offset,
               d->bytes, d->point, d->what);
    } else {
        (void)cli_failed(command.name,
                         "disk '%s' is damaged from %" PRIu64 " on for %" PRIu64
                         " bytes, in point %s: %s",
                         d->disk, d->offset, d->bytes, d->point, d->what);
    }
}

static int restore_part(struct request *rq, struct part *p)
{
    CLEANUP_ERROR struct error *err = NULL;
    const struct restore_options o = {
        .partial = rq->partial,
        .target_zero = p->target.empty,
        .threads = p->target.remote ? REMOTE_THREADS : 0,
        .stop = &stop,
        .on_damage = tell_damage,
        .opaque = rq,
    };

    atomic_store(&rq->result.done, 0);
    atomic_store(&rq->result.damaged, 0);
    rq->size = p->disk->size;
    struct progress *progress =
        rq->progress_json ? progress_start_json(bytes_of, rq)
                          : progress_start(p->disk->name, done_of, rq);
    int r = restore_disk(rq->store, rq->graph, rq->point->name, p->disk->name,
                         p->target.blk, &o, &rq->result, &err);
    progress_stop(progress);
    p->kept = r == 0 || (r == -EUCLEAN && rq->partial);
    if (r < 0) {
        (void)cli_error(command.name, err);
    }
    if (!p->kept && !p->target.created &&
        atomic_load(&rq->result.written) > 0) {
        (void)cli_failed(command.name, "'%s' was overwritten in part", p->name);
    }
    return r == 0 ? 0 : cli_status(r);
}

/* Damage does not end a partial restore; all else does. */
static int restore_parts(struct request *rq)
{
    int worst = 0;

    for (unsigned i = 0; i < rq->count; i++) {
        rq->total += rq->parts[i].disk->size;
    }
    for (unsigned i = 0; i < rq->count; i++) {
        atomic_store(&rq->result.written, 0);
        int status = restore_part(rq, &rq->parts[i]);
        if (status != 0 && (status != CLI_DAMAGED || !rq->partial)) {
            return status;
        }
        worst = status ? status : worst;
        rq->before += rq->size;
    }
    return worst;
}

static int restore(struct request *rq, int argc, char **argv)
{
    int status = find_point(rq, argv[0]);

    if (status == 0 && rq->point) {
        status = take_disks(rq, argc - 1, argv + 1);
    }
    if (status == 0) {
        watch_signals();
        status = open_targets(rq);
    }
    if (status == 0) {
        status = restore_parts(rq);
    }
    for (unsigned i = 0; i < rq->count; i++) {
        target_close(rq->graph, &rq->parts[i].target, rq->parts[i].kept);
        free(rq->parts[i].name);
    }
    free(rq->parts);
    store_close(rq->store);
    int r = cli_finish(command.name);
    return status ? status : r;
}

static int take_options(struct request *rq, int argc, char **argv)
{
    int code;

    while ((code = cli_next(&command, argc, argv)) != CLI_END) {
        switch (code) {
        case 'f':
            rq->format = optarg;
            break;
        case OPT_FORCE:
            rq->force = true;
            break;
        case OPT_PARTIAL:
            rq->partial = true;
            break;
        case OPT_PROGRESS:
            rq->progress = optarg;
            break;
        default:
            return code;
        }
    }
    return CLI_END;
}

int cmd_restore(int argc, char **argv)
{
    struct request rq = {.format = NULL};
    int code = take_options(&rq, argc, argv);

    if (code != CLI_END) {
        return code == CLI_HELP ? EXIT_SUCCESS : CLI_USAGE;
    }
    if (rq.format && strcmp(rq.format, "qcow2") != 0 &&
        strcmp(rq.format, "raw") != 0) {
        return cli_usage(&command, "'%s' is neither qcow2 nor raw", rq.format);
    }
    if (rq.progress && strcmp(rq.progress, "json") != 0) {
        return cli_usage(&command, "--progress is json, not '%s'", rq.progress);
    }
    rq.progress_json = rq.progress != NULL;
    if (optind >= argc) {
        return cli_usage(&command, "which backup directory?");
    }
    rq.graph = graph_new();
    if (!rq.graph) {
        return cli_failed(command.name, "no memory");
    }
    int status = restore(&rq, argc - optind, argv + optind);
    graph_free(rq.graph);
    return status;
}
