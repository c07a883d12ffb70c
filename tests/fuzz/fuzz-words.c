/* SPDX-License-Identifier: BSD-3-Clause */

/*
 * Small languages of the command line and of the monitor: options against the
 * arguments of a command, commands of qemu-io, the rules of blkdebug, sizes.
 * The first line is the command's name, the rest is given to all of them.
 * A value that is taken is within its limits.  A value that is refused gets a
 * reason, in one printable line.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "commands/table.h"
#include "core/opts.h"
#include "daemon.h"
#include "drivers/blkdebug-rules.h"
#include "keyval.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/size.h"
#include "vm/qemu-io-parse.h"

static void check(bool ok)
{
    if (!ok) {
        abort();
    }
}

static void check_error(const struct error *err, int r)
{
    check(err && error_code(err) == -r && error_message(err)[0] != '\0');
    for (const char *p = error_message(err); *p; p++) {
        check((unsigned char)*p >= 0x20 && *p != 0x7f);
    }
}

static void check_option(const char *name, const char *text)
{
    const struct qmp_command *cmd = qmp_find_command(name);
    CLEANUP_JSON json_t *args = NULL;
    CLEANUP_ERROR struct error *err = NULL;

    if (!cmd || !cmd->args) {
        return;
    }
    int r = keyval_parse(text, cmd->args->name, cmd->args, &args, &err);
    if (r < 0) {
        check_error(err, r);
    } else {
        check(json_is_object(args));
        check(qmp_check_args(args, cmd->args, "", NULL) == 0);
    }
}

static void check_io(const char *text)
{
    struct io_args a;
    CLEANUP_ERROR struct error *err = NULL;
    int r = io_parse(text, &a, &err);

    if (r < 0) {
        check_error(err, r);
    } else {
        check(a.op == IO_NOTHING || a.verb);
        check(a.pattern >= -1 && a.pattern <= 255);
        check(a.offset <= INT64_MAX && a.bytes <= INT64_MAX);
        if (a.op == IO_READ) {
            check(a.check_from <= a.bytes &&
                  a.check_len <= a.bytes - a.check_from);
        }
    }
    io_args_clear(&a);
}

static void check_rules(const char *text)
{
    static char path[] = "/tmp/fuzz-words.XXXXXX";
    static int fd = -1;
    struct list rules;
    CLEANUP_ERROR struct error *err = NULL;
    json_t *none = json_object();
    struct opts *o = opts_new(none);

    list_init(&rules);
    if (fd < 0) {
        fd = mkstemp(path);
    }
    check(fd >= 0 && o);
    FILE *f = fopen(path, "w");
    check(f && fputs(text, f) >= 0 && fclose(f) == 0);
    int r = blkdebug_rules_load(&rules, path, o, &err);
    if (r < 0) {
        check_error(err, r);
    }
    blkdebug_rules_free(&rules);
    opts_free(o);
    json_decref(none);
    (void)unlink(path);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    CLEANUP_FREE char *name = strndup((const char *)data, size);
    uint64_t bytes = 0;

    check(name != NULL);
    char *text = strchr(name, '\n');
    if (!text) {
        return 0;
    }
    *text++ = '\0';
    check_option(name, text);
    check_io(text);
    check_rules(text);
    if (size_parse(text, &bytes) == 0) {
        check(bytes <= INT64_MAX);
    }
    return 0;
}
