/* SPDX-License-Identifier: BSD-3-Clause */
/* Creating an image in a job, so that no command waits for a large one. */
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "core/create.h"
#include "core/graph.h"
#include "job/job.h"
#include "nbdelta/error.h"
#include "nbdelta/image.h"

struct create {
    struct job job;

    /* Set before the start. */
    char *format;
    char *filename; /* or NULL, then @file is there */
    json_t *file;
    json_t *options;

    struct image_nodes left; /* set by run, released by clean */

    /* Atomic. */
    _Atomic bool done;
};

static struct create *create_of(struct job *job)
{
    return (struct create *)job;
}

static int create_run(struct job *job)
{
    struct graph *g = jobs_graph(job->jobs);
    struct create *c = create_of(job);
    /* What will be copied to the image is not known yet, and may be private. */
    struct file_make how = {.access = FILE_ACCESS_OWNER, .secrets = g};
    int r = c->filename
                ? image_create_as(graph_drivers(g), c->filename, c->format,
                                  c->options, &how, &job->error)
                : image_format(g, c->format, c->file, c->options, &c->left,
                               &job->error);

    atomic_store(&c->done, true);
    return r;
}

static void create_clean(struct job *job)
{
    image_release(jobs_graph(job->jobs), &create_of(job)->left);
}

static void create_progress(struct job *job, uint64_t *done, uint64_t *total)
{
    *done = atomic_load(&create_of(job)->done);
    *total = 1;
}

static void create_free(struct job *job)
{
    struct create *c = create_of(job);

    free(c->format);
    free(c->filename);
    json_decref(c->file);
    json_decref(c->options);
    free(c);
}

static const struct job_driver create_driver = {
    .type = "create",
    .general = true,
    .run = create_run,
    .clean = create_clean,
    .progress = create_progress,
    .free = create_free,
};

static struct create *create_new(const struct image_options *o)
{
    struct create *c = calloc(1, sizeof(*c));

    if (!c) {
        return NULL;
    }
    c->format = strdup(o->format);
    c->filename = o->filename ? strdup(o->filename) : NULL;
    c->file = o->file ? json_deep_copy(o->file) : NULL;
    c->options = json_deep_copy(o->options);
    if (!c->format || !c->options || (o->filename && !c->filename) ||
        (o->file && !c->file)) {
        create_free(&c->job);
        return NULL;
    }
    return c;
}

int job_create_image(struct jobs *j, const struct image_options *o,
                     struct error **errp)
{
    struct job_options job = {.id = o->job_id, .manual_dismiss = true};
    struct create *c = create_new(o);
    struct job_txn *txn = job_txn_new();

    if (!c || !txn) {
        if (c) {
            create_free(&c->job);
        }
        job_txn_unref(txn);
        return error_nomem(errp);
    }
    int r = job_create(j, &c->job, &create_driver, &job, errp);
    if (r < 0) {
        create_free(&c->job);
    } else {
        r = job_enlist(j, &c->job, txn, errp);
        if (r == 0) {
            job_go(j, &c->job);
        } else {
            job_unref(j, &c->job);
        }
    }
    job_txn_unref(txn);
    return r;
}
