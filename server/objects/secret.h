/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_OBJECTS_SECRET_H
#define NBDELTA_SERVER_OBJECTS_SECRET_H

/* Objects "secret": a password, which is given as it is or in a file. */
#include <jansson.h>

#include "args.h"

struct error;

/* Properties beside "qom-type" and "id". */
extern const struct qmp_arg secret_args[];

/* Are the checked @props enough, and can the file be read? */
int secret_check(const json_t *props, struct error **errp);

/* The secret of @props, with a NUL at its end; free it with secret_free().  Its
 * file is read now.  -EINVAL: it is not base64, or has a NUL in it; -EFBIG: it
 * has 64 KiB or more. */
int secret_text(const json_t *props, char **text, struct error **errp);
/* The same for a secret that may have NULs in it, as keys of Ceph have:
 * @count bytes. */
int secret_bytes(const json_t *props, char **bytes, size_t *count,
                 struct error **errp);
void secret_free(char *text); /* NULL is fine; @text is overwritten first */

#endif /* NBDELTA_SERVER_OBJECTS_SECRET_H */
