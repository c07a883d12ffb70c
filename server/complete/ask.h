/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_COMPLETE_ASK_H
#define NBDELTA_SERVER_COMPLETE_ASK_H

/*
 * Names that images, backup directories, servers and monitors have
 * ================================================================
 *
 * Each offers what it finds, and nothing where that cannot be had: a completion
 * has no errors.  Only local files and sockets are looked at, by reading, and
 * without locks.  They block: call them by aside().
 */
#include <stdbool.h>
#include <stddef.h>

struct offers;

/* A user's "~/x" becomes a path of the home directory; free it.  NULL: no
 * memory. */
char *ask_path(const char *text);

/* --- ask-image.c --- */

/* The bitmaps (the internal snapshots) of the image or block device at @path.
 * Other files that it names are left alone.  @format: or NULL, it is probed. */
struct ask_image {
    const char *path;
    const char *format;
};
void ask_bitmaps(struct offers *o, const void *image);
void ask_snapshots(struct offers *o, const void *image);

/* --- ask-export.c --- */

/* The bitmaps that the export at @uri, a Unix socket, has. */
bool ask_can_export(const char *uri); /* is it one? */
void ask_export_bitmaps(struct offers *o, const void *uri);

/* --- ask-store.c --- */

/* Is there a backup directory at @path? */
bool ask_is_store(const char *path);

/* The points of a directory; the disks of one of them. */
struct ask_store {
    const char *dir;
    const char *point; /* of ask_disks; NULL: the latest */
};
void ask_points(struct offers *o, const void *store);
void ask_disks(struct offers *o, const void *store);

/* --- ask-monitor.c --- */

struct ask_monitor {
    const char *socket;  /* a path; nothing happens if it is something else */
    const char *command; /* of ask_arguments */
    const char *const *words; /* KEY=VALUE that came before; of the same */
    size_t count;
};
void ask_commands(struct offers *o, const void *monitor);
void ask_help_topics(struct offers *o, const void *monitor);
void ask_arguments(struct offers *o, const void *monitor);
void ask_events(struct offers *o, const void *monitor);
void ask_nodes(struct offers *o, const void *monitor);
void ask_jobs(struct offers *o, const void *monitor);
void ask_backups(struct offers *o, const void *monitor);
void ask_checkpoints(struct offers *o, const void *monitor);

#endif /* NBDELTA_SERVER_COMPLETE_ASK_H */
