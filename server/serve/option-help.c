/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * "help" as the value of an option: see option-help.h.
 *
 * As in qemu-storage-daemon, objects and chardevs have help, and the other
 * options that take key=value say that they have none.
 */
#include "serve/option-help.h"

#include <stdio.h>
#include <string.h>

#include "args.h"
#include "cli/cli.h"
#include "objects/object.h"
#include "qmp/chardev.h"

/* Is "help" or "?" one of the words of @arg? */
static bool asks_for_help(const char *arg)
{
    for (const char *p = arg; *p;) {
        size_t len = strcspn(p, ",");

        if ((len == 4 && strncmp(p, "help", len) == 0) ||
            (len == 1 && *p == '?')) {
            return true;
        }
        p += len + (p[len] == ',');
    }
    return false;
}

static void print_row(const char *where, const struct qmp_arg *a)
{
    printf("  %s%s=<", where, a->name);
    switch (a->type) {
    case QMP_BOOL:
        (void)fputs("bool", stdout);
        break;
    case QMP_INT:
    case QMP_UINT32:
        (void)fputs("int", stdout);
        break;
    case QMP_SIZE:
        (void)fputs("size", stdout);
        break;
    case QMP_ENUM:
        for (size_t i = 0; a->words && a->words[i]; i++) {
            printf("%s%s", i > 0 ? "|" : "", a->words[i]);
        }
        break;
    default:
        (void)fputs("string", stdout);
        break;
    }
    puts(">");
}

/* Members have dotted names, as a user writes them. */
static void print_rows(const char *title, const struct qmp_arg *rows)
{
    printf("%s options:\n", title);
    for (const struct qmp_arg *a = rows; a && !qmp_is_last(a); a++) {
        char where[64];

        (void)snprintf(where, sizeof(where), "%s%s.", a->name,
                       a->type == QMP_OBJECTS ? ".0" : "");
        for (const struct qmp_arg *m = a->members; m && !qmp_is_last(m); m++) {
            print_row(where, m);
        }
        if (!a->members) {
            print_row("", a);
        }
    }
}

/* The one of @v (which ends with a NULL name) that @arg begins with. */
static const struct qmp_variant *find_variant(const struct qmp_variant *v,
                                              const char *arg)
{
    size_t len = strcspn(arg, ",");

    while (v->name &&
           (strlen(v->name) != len || strncmp(v->name, arg, len) != 0)) {
        v++;
    }
    return v->name ? v : NULL;
}

static void print_help(const char *heading, const struct qmp_variant *all,
                       const char *arg)
{
    const struct qmp_variant *v = find_variant(all, arg);

    if (v) {
        print_rows(v->name, v->members);
        return;
    }
    puts(heading);
    for (v = all; v->name; v++) {
        printf("  %s\n", v->name);
    }
}

/* The backends, with their options. */
static const struct qmp_variant *chardev_variants(void)
{
    const struct qmp_arg *a = chardev_args;

    while (!qmp_is_last(a)) {
        a++;
    }
    return a->variants;
}

bool option_help(const struct serve_config *cfg, int code, const char *name,
                 const char *arg, int *status)
{
    bool helps = code == OPT_OBJECT || code == OPT_CHARDEV;
    bool other = code == OPT_BLOCKDEV || code == OPT_EXPORT ||
                 code == OPT_NBD_SERVER || code == OPT_MONITOR;

    if (!arg || (!helps && !other) || arg[0] == '{' || !asks_for_help(arg)) {
        return false;
    }
    if (other) {
        *status = cli_failed(cfg->command->name,
                             "--%s %s: Help is not available for this option",
                             name, arg);
        return true;
    }
    if (code == OPT_OBJECT) {
        print_help("List of user creatable objects:", objects_types, arg);
    } else {
        print_help("Available chardev backend types: ", chardev_variants(),
                   arg);
    }
    *status = cli_finish(cfg->command->name);
    return true;
}
