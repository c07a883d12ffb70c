/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_STORE_NAME_H
#define NBDELTA_SERVER_STORE_NAME_H

/*
 * Names in a backup directory
 * ===========================
 *
 * A point is named by its instant in UTC: "20261129T023000Z".  Names have one
 * length, so that their order as text is their order in time.  Nothing here
 * blocks or looks at a file.
 */
#include <stdbool.h>
#include <stdint.h>

struct error;

#define POINT_NAME_LEN 16
#define POINT_NAME_MAX (POINT_NAME_LEN + 1) /* with its NUL byte */

/* The longest name of a disk, in bytes: it is a folder's name. */
#define DISK_NAME_MAX 200

/*
 * The name of the instant @now (seconds since 1970), or of the second after
 * the point @after (NULL: none) where @now is not later: the clock was set
 * back.  @out has POINT_NAME_MAX bytes.  -ERANGE: no such year has four digits.
 */
int point_name_make(int64_t now, const char *after, char *out);

/* Is it the name of a point, an instant that exists?  Leap seconds do not. */
bool point_name_valid(const char *name);

/* The instant, in seconds since 1970, of a valid name. */
int64_t point_name_time(const char *name);

/* "2026-11-29T02:30:00Z" of a valid name, for people.  @out has 21 bytes. */
#define POINT_SHOWN_MAX 21
void point_name_show(const char *name, char *out);

/*
 * Which of @count names (oldest first, all valid) does @word mean?  A word is
 * "latest", "latest~N", or the beginning of an instant, with or without its
 * dashes and colons: "2026-11-29T023000Z", "20261129T02", "2026".
 * *found is an index.  -ENOENT: none of them; -EINVAL: more than one, or no
 * such word.
 */
int point_name_find(const char *const *names, unsigned count, const char *word,
                    unsigned *found, struct error **errp);

/*
 * Split "DIR@POINT" at its last '@' if no slash follows and there is no file of
 * the whole name.  *dir is malloc()ed, *word points
 * into @arg, or is NULL: none was given.  -EINVAL: there is an '@', and what
 * follows is nothing; -ENOMEM.
 */
int point_name_split(const char *arg, char **dir, const char **word,
                     struct error **errp);

/* Is it a directory, perhaps with a point?  Looks at it.  Free *dir. */
bool point_name_is_directory(const char *arg, char **dir, const char **word);

/*
 * Can a disk have this name here?  It becomes a folder: no slash, no colon, no
 * control characters, no dot at its beginning, not the name of a file of ours.
 * -EINVAL says what is wrong with it.
 */
int disk_name_check(const char *name, struct error **errp);

#endif /* NBDELTA_SERVER_STORE_NAME_H */
