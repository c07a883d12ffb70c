/* SPDX-License-Identifier: BSD-3-Clause */
/* --object for sub-commands: see object-option.h. */
#include "cli/object-option.h"

#include <jansson.h>

#include "cli/cli.h"
#include "keyval.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "objects/object.h"

int object_option(const struct cli_command *c, struct objects *s,
                  const char *text)
{
    CLEANUP_ERROR struct error *err = NULL;
    CLEANUP_JSON json_t *props = NULL;
    int r = keyval_parse(text, "qom-type", object_args, &props, &err);

    if (r == 0) {
        r = objects_add(s, props, &err);
    }
    return r < 0 ? cli_error(c->name, err) : 0;
}
