/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_CLI_BACKUP_RUN_H
#define NBDELTA_SERVER_CLI_BACKUP_RUN_H

/*
 * One run of a backup: from a source into a directory
 * ===================================================
 *
 *   lock the directory, open the source; a run that was killed while it copied
 *                is gone on with, if the source has what that one has frozen:
 *                nothing is frozen then
 *   settle what a killed run has left   a pending point is finished if its
 *                                       checkpoint is at the source, else it
 *                                       goes; so do checkpoints of this
 *                                       directory that no point needs
 *   freeze       the guest's file systems stand still, if that is asked for
 *   begin        one instant, a new checkpoint on all disks
 *   thaw
 *   copy         a few disks at once: image, hashes; then all files have their
 *                names
 *   pending      the manifest names the new checkpoint
 *   end          the new checkpoint stays at the source
 *   finish       the manifest has its name: the point is there
 *   forget       the checkpoint before goes
 *   prune        points go that need not stay, if that is asked for
 *
 * Nothing is ever cleared, so no crash leaves in doubt whether the last point
 * counts: until `pending` the old checkpoint is there and the new one goes;
 * from then on the next run asks the source.
 */
#include <stdbool.h>
#include <stdint.h>

#include "source/source.h"
#include "store/rules.h"

struct error;

struct backup_options {
    const char *source;      /* as the user gave it */
    const char *source_name; /* the same without secrets: for what is kept */
    const char *directory;
    const char *const *disks; /* wanted ones; NULL: all */
    unsigned disk_count;
    bool full;
    bool dry_run;
    bool no_fallback;
    bool new_source;         /* the directory may have points of another one */
    double audit;            /* percent of what is clean; 0: none */
    bool show_progress;      /* on the terminal */
    bool progress_json;      /* a line a second on standard error */
    uint64_t rate;           /* bytes a second; 0: no limit */
    const char *compression; /* "zstd", "deflate"; NULL: none */
    const char *hook;        /* a command for the shell, or NULL */
    unsigned hook_timeout_s; /* for each time that it runs */
    bool freeze;             /* the guest's file systems, for the instant */
    /* Who we are to a source on another host; NULL: nobody asks. */
    const char *tls_certificates; /* directory with ca-cert.pem... */
    const char *tls_psk;          /* or a file with users' keys */
    const char *tls_username;     /* of these, or NULL */
    bool prune;
    struct keep_rules keep; /* with `prune`: points that stay */
    struct source_options how;
};

/*
 * Make a point.  o->how.stop_fd becomes readable when the user wants an end
 * (interrupt.h).  *report: what was done, as --output=json shows it, a new
 * reference; NULL after a failure.  Returns the exit status (point-arg.h).
 */
int backup_run(const struct backup_options *o, json_t **report,
               struct error **errp);

/* Remove all checkpoints of the directory from the source.  The next point will
 * be a full.  Returns the exit status. */
int backup_forget(const struct backup_options *o, struct error **errp);

#endif /* NBDELTA_SERVER_CLI_BACKUP_RUN_H */
