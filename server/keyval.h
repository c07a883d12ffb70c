/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_KEYVAL_H
#define NBDELTA_SERVER_KEYVAL_H

/*
 * Options of the command line that have the shape of a command's arguments:
 * JSON, or dotted keys, whose values are all strings at first.
 */
#include <jansson.h>

#include "args.h"

struct error;

/*
 * Parse @text against @spec.  @implied is the key of a first value without
 * one, or NULL.  Strings of the dotted form become what @spec wants: "on"
 * and "off", numbers.  *args, checked, is a new reference.
 */
int keyval_parse(const char *text, const char *implied,
                 const struct qmp_arg *spec, json_t **args,
                 struct error **errp);

/*
 * @text, for an option whose keys are all known by @spec, with booleans of the
 * short form spelled out, as old recipes have them: "server,nowait" becomes
 * "server=on,wait=off".  The log has a warning for each.  The first word is
 * left if it is the value of @implied.  To be freed; NULL: no memory.
 */
char *keyval_spell_out(const char *text, const char *implied,
                       const struct qmp_arg *spec);

#endif /* NBDELTA_SERVER_KEYVAL_H */
