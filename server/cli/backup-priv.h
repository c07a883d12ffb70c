/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_CLI_BACKUP_PRIV_H
#define NBDELTA_SERVER_CLI_BACKUP_PRIV_H

/*
 * Shared by the files of a backup run:
 *
 *   backup-run.c      the order of the steps
 *   backup-settle.c   what runs before have left
 *   backup-source.c   is it the source that the directory belongs to?
 *   backup-plan.c     which disks, and what of them
 *   backup-resume.c   going on with a run that was cut off
 *   backup-heal.c     damage of earlier points
 *   backup-copier.c   the threads that copy, and the one that watches them
 *   backup-report.c   manifest and JSON
 *   backup-prune.c    points that go
 *   backup-hook.c     the user's command
 *   backup-tls.c      keys
 *
 * All functions block and belong to the main thread.
 */
#include "cli/backup-copy.h"
#include "cli/backup-run.h"
#include "store/plan.h"
#include "store/store.h"

struct graph;

/* "nbdelta-ID-POINT" */
#define CHECKPOINT_MAX (sizeof("nbdelta-") + STORE_ID_MAX + POINT_NAME_MAX)

struct run {
    const struct backup_options *o;
    struct graph *graph;
    struct store *store;
    struct source *source;

    char point[POINT_NAME_MAX];      /* the new one */
    char checkpoint[CHECKPOINT_MAX]; /* its checkpoint */
    char since[CHECKPOINT_MAX];      /* that of the point before, or "" */
    char parent[POINT_NAME_MAX];     /* the point before, or "" */

    json_t *identity; /* of the source, or NULL: nobody can tell */
    json_t *resume;   /* what a cut-off run was to make, or NULL */
    json_t *copied;   /* identity of the source for a run whose point is
                         pending, or NULL */
    char resume_point[POINT_NAME_MAX];
    char left[CHECKPOINT_MAX]; /* of a run that was cut off, and that nobody
                                  goes on with; or "" */
    bool noted;                /* resume.json is ours */

    unsigned count; /* disks that are wanted */
    struct plan_disk *plan;
    struct copy_job *copies;
    struct source_disk **disks;
    bool fell_back;
    bool kept; /* the files have their names */
};

/* --- backup-tls.c --- */

/* Make the credentials that the command line names.  *id is their id in the
 * run's graph, or NULL. */
int run_make_tls(const struct run *r, const char **id, struct error **errp);

/* --- backup-settle.c --- */

/* The name of the checkpoint of @point; @out has CHECKPOINT_MAX bytes. */
void run_name_checkpoint(const struct run *r, const char *point, char *out);

/* Make both sides agree about what was done before, unless it is a dry run, and
 * write r->since. */
int run_settle(struct run *r, struct error **errp);

/* Of wanted disks that the last point has not: their checkpoint of an earlier
 * one goes. */
int run_forget_returned(struct run *r, struct error **errp);

/* All checkpoints of this directory go from the source. */
int run_forget_all(struct run *r, struct error **errp);

/* The point is there, so the checkpoint before goes.  What fails is told, and
 * done by the next run. */
void run_forget_before(struct run *r);

/* --- backup-source.c --- */

/* What the manifest calls the source that the user gave: a path is absolute.
 * malloc()ed; NULL: no memory. */
char *run_name_source(const char *given);

/* Before anything of an earlier run is settled.  @has_checkpoint: of this
 * directory, at the source.  -EINVAL: the directory belongs to another one. */
int run_check_source(struct run *r, bool has_checkpoint, struct error **errp);

/* --- backup-plan.c --- */

/* The wanted disks of the source: r->disks, and room for plan and copies. */
int run_choose_disks(struct run *r, struct error **errp);

/* Of a dry run: what would be done, as far as the source tells without a
 * begin. */
int run_plan_only(struct run *r, struct error **errp);

/* After begin: the source has said of which disks it knows the changes. */
int run_make_plan(struct run *r, struct error **errp);

/* --- backup-resume.c --- */

/* Before the source is opened: has a run that was cut off left something that
 * this one was to make, too? */
int run_look_for_resume(struct run *r, struct error **errp);

/* What source_open() is to adopt, or to end; borrowed, or NULL. */
const json_t *run_wants_adopted(const struct run *r);

/* The pending point is one now, or is gone. */
int run_forget_copied(struct run *r, struct error **errp);

/* The source is open: has it what it had? */
int run_check_resume(struct run *r, struct error **errp);

/* It has not, after all: all begins again. */
int run_begin_again(struct run *r, struct error **errp);

/* Does the part that is there belong to what @c is to make? */
bool run_may_resume(const struct run *r, const struct copy_job *c);

/* Before begin: a later run finds the new checkpoint, also where the source
 * does not list it. */
int run_note_begin(struct run *r, struct error **errp);

/* The copies are prepared: a later run may go on with them. */
int run_note_resume(struct run *r, struct error **errp);

/* No run goes on with this one. */
void run_end_resume(struct run *r);

/* --- backup-heal.c --- */

/* After begin: what was found damaged in earlier points is healed. */
int run_heal(struct run *r, struct error **errp);

/* --- backup-copier.c --- */

/* Copy all disks.  -ECANCELED: the user wants an end. */
int run_copy_all(struct run *r, struct error **errp);

/* --- backup-report.c --- */

/* All about the point but its definition.  -ENOMEM. */
int run_fill_manifest(const struct run *r, struct manifest *m);

/* What was done, for the user: a new reference, or NULL: no memory. */
json_t *run_describe(const struct run *r);

/* --- backup-prune.c --- */

/* The point is there: points go that no rule keeps.  What fails is told.  0;
 * -EUCLEAN: there is damage. */
int run_prune(struct run *r);

/* --- backup-hook.c --- */

struct hook {
    const char *when; /* "before", "frozen", "after", "failed" */
    const char *why;  /* of "failed": the error; or NULL */
    int limit_ms;
    bool still;      /* a guest's file systems stand still: no grace */
    bool last_words; /* it runs although the user has wanted an end before */
};

/* Run the user's command, if there is one, and wait for it.  -ECHILD: it has
 * failed; -ETIMEDOUT: it took too long; -ECANCELED: the user wants an end;
 * other errors of starting it. */
int run_hook(const struct run *r, const struct hook *h, struct error **errp);

#endif /* NBDELTA_SERVER_CLI_BACKUP_PRIV_H */
