/* SPDX-License-Identifier: BSD-3-Clause */
/* Checks of the types of node options, for any driver. */
#include <errno.h>
#include <stdio.h>

#include "core/reopen.h"
#include "nbdelta/bytes.h"
#include "nbdelta/error.h"

/* Check the types of @o.  @path, with a dot at its end, is where @o is
 * found. */
static int check_types(const struct driver_table *t, const json_t *o,
                       const char *path, struct error **errp)
{
    static const char *const strings[] = {"driver", "node-name", "filename"};
    static const char *const children[] = {"file", "backing", "data-file"};
    const json_t *driver = json_object_get(o, "driver");
    char below[200];

    for (size_t i = 0; i < ARRAY_SIZE(strings); i++) {
        const json_t *value = json_object_get(o, strings[i]);
        if (value && !json_is_string(value)) {
            return error_set(errp, EINVAL,
                             "Invalid parameter type for '%s%s', expected: "
                             "string",
                             path, strings[i]);
        }
    }
    if (!driver) {
        return error_set(errp, EINVAL, "Parameter '%sdriver' is missing", path);
    }
    if (!driver_find(t, json_string_value(driver))) {
        return error_set(errp, EINVAL,
                         "Parameter 'driver' does not accept value '%s'",
                         json_string_value(driver));
    }
    for (size_t i = 0; i < ARRAY_SIZE(children); i++) {
        const json_t *child = json_object_get(o, children[i]);
        (void)snprintf(below, sizeof(below), "%s%s.", path, children[i]);
        int r = json_is_object(child) ? check_types(t, child, below, errp) : 0;
        if (r < 0) {
            return r;
        }
    }
    return 0;
}

int reopen_check_types(const struct driver_table *t, const json_t *list,
                       struct error **errp)
{
    size_t i;
    json_t *item;
    char path[40];
    int r = 0;

    json_array_foreach (list, i, item) {
        (void)snprintf(path, sizeof(path), "options[%zu].", i);
        r = r < 0 ? r : check_types(t, item, path, errp);
    }
    return r;
}
