/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_OBJECTS_SECRET_H
#define NBDELTA_SERVER_OBJECTS_SECRET_H

/* Objects "secret": a password, given as it is or in a file. */
#include <jansson.h>

#include "args.h"

struct error;

/* Properties beside "qom-type" and "id". */
extern const struct qmp_arg secret_args[];

/* Are the checked @props enough, and can the file be read? */
int secret_check(const json_t *props, struct error **errp);

/* What they tell, with a NUL at its end; the file is read now.  -EINVAL: not
 * base64, or a NUL in it; -EFBIG: 64 KiB or more. */
int secret_text(const json_t *props, char **text, struct error **errp);
void secret_free(char *text); /* NULL is fine; it is overwritten */

#endif /* NBDELTA_SERVER_OBJECTS_SECRET_H */
