/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_SOURCE_PRIVATE_DIR_H
#define NBDELTA_SERVER_SOURCE_PRIVATE_DIR_H

/*
 * Directories that only the source's process may enter
 * ====================================================
 *
 * PARENT/nbdelta-ID.XXXXXX, with mode 0700, belongs to the user that the other
 * process runs as: it makes a socket, or files, there.  Nobody else sees what
 * they hold.  What a killed run has left is found by the name.
 */
#include <sys/types.h>

struct error;

struct private_dir {
    char *path; /* absolute; NULL: there is none */
};

/* Make one in @parent.  It is ours until it is given to @owner, the other
 * process's user, who may change everything in it then: so make files first. */
int private_dir_make(struct private_dir *d, const char *parent, const char *id,
                     struct error **errp);
int private_dir_give(struct private_dir *d, uid_t owner, struct error **errp);

/*
 * It is @path, as private_dir_make() has made and given it in another process,
 * which was killed.  -ENOENT: there is no such directory of @id in @parent, or
 * somebody else has it.
 */
int private_dir_take(struct private_dir *d, const char *parent, const char *id,
                     uid_t owner, const char *path);

/* $TMPDIR, or where that is not set or is too long for a socket's path, /tmp.
 * The directory of @socket, for a process that has another /tmp: a new string;
 * NULL: it is the same one, or is too long.  $TMPDIR or /var/tmp, for files. */
const char *private_dir_for_sockets(void);
char *private_dir_beside(const char *socket);
const char *private_dir_for_files(void);

/* Remove it, and what is in it. */
void private_dir_remove(struct private_dir *d);

/* Remove all those of @id in @parent that @owner, or we, have. */
void private_dir_sweep(const char *parent, const char *id, uid_t owner);

#endif /* NBDELTA_SERVER_SOURCE_PRIVATE_DIR_H */
