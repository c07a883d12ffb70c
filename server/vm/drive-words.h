/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_VM_DRIVE_WORDS_H
#define NBDELTA_SERVER_VM_DRIVE_WORDS_H

/* The words of --drive that other options do not have. */
#include <jansson.h>

struct error;

/* Parse @text.  *file, malloc()ed, is what file=NAME says, or NULL; *options, a
 * new reference, has all the others, "file" (an object) from file.KEY among
 * them.  QEMU's old names of limits have become throttling.KEY. */
int drive_words_parse(const char *text, char **file, json_t **options,
                      struct error **errp);

/* Let the options @image of file=NAME have what file.KEY says: @given, an
 * object.  A driver in there that is not the one of NAME is between that and
 * the outer node. */
int drive_words_merge(json_t *image, json_t *given, struct error **errp);

#endif /* NBDELTA_SERVER_VM_DRIVE_WORDS_H */
