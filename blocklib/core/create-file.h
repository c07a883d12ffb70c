/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_CORE_CREATE_FILE_H
#define NBDELTA_CORE_CREATE_FILE_H

/*
 * The file under a new image: made or emptied under its image lock, so that
 * an image in use is never truncated, and durable when it is finished.
 */
#include <sys/stat.h>

#include "nbdelta/types.h"

/* Who may use a file?  Permissions, and the group that the group's permissions
 * are for. */
struct file_access {
    mode_t mode;
    bool of_group; /* gid is known */
    gid_t gid;
};

/* Access that nothing has restricted, and access for the owner alone. */
#define FILE_ACCESS_ANY   ((struct file_access){.mode = 0644})
#define FILE_ACCESS_OWNER ((struct file_access){.mode = 0600})

/* Take away access that a user has not to the file with @st. */
void file_access_narrow(struct file_access *a, const struct stat *st);

/* How a file is made, and which file it has become: the name may lead elsewhere
 * when it is opened later. */
struct file_make {
    struct file_access access; /* never more than that (nor than the umask) */
    struct stat made;
    struct graph *secrets; /* has those that options name, or NULL */
};

/*
 * Open @filename for a new image: an empty regular file, or a block device as
 * it is.  *existed: it was there before, which is -EEXIST without @replace;
 * then its permissions stay.  A link that is neither ours nor root's is not
 * followed: -EPERM.  -EAGAIN: another program has it locked.
 */
int file_create_begin(const char *filename, bool replace, struct file_make *how,
                      int *fd, bool *existed, struct error **errp);

/* Write all bytes with pwrite(); 0 or -errno. */
int file_create_write(int fd, const void *buf, size_t bytes, uint64_t offset);

/*
 * Close @fd.  With @r == 0 make the file and its name durable first; else
 * remove the file, unless it @existed.  Returns @r, or the error of that.
 */
int file_create_finish(const char *filename, int fd, bool existed, int r,
                       struct error **errp);

/* How much of a file takes space on its disk. */
enum file_room { ROOM_NONE, ROOM_RESERVED, ROOM_WRITTEN };

/* A file of @size zeroes, durable, in place of what is at @filename.  (A block
 * device keeps its bytes, except with ROOM_WRITTEN.)  Removed on failure. */
int file_create_plain(const char *filename, uint64_t size, enum file_room room,
                      struct file_make *how, struct error **errp);

#endif /* NBDELTA_CORE_CREATE_FILE_H */
