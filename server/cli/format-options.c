/* SPDX-License-Identifier: BSD-3-Clause */
/* -o of sub-commands: see format-options.h. */
#include "cli/format-options.h"

#include <stdio.h>
#include <string.h>

#include "cli/cli.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/image.h"
#include "nbdelta/options.h"

int format_options_add(const struct cli_command *c, const char *text,
                       json_t *options, bool *help)
{
    CLEANUP_ERROR struct error *err = NULL;
    CLEANUP_JSON json_t *more = NULL;

    if (strcmp(text, "help") == 0 || strcmp(text, "?") == 0) {
        *help = true;
        return 0;
    }
    if (options_parse(text, NULL, &more, &err) < 0) {
        return cli_error(c->name, err);
    }
    if (json_object_update(options, more) < 0) {
        return cli_failed(c->name, "no memory for options");
    }
    return 0;
}

static const struct format_option option_help[] = {
    {"size", "size of the disk in bytes", NULL},
    {"backing_file", "what the image shows where nothing was written", NULL},
    {"backing_fmt", "format of the backing file: qcow2 or raw", "qcow2|raw"},
    {"compat", "version of the format: 0.10 or 1.1", "0.10|1.1"},
    {"cluster_size",
     "unit of allocation, 512 to 2M (64k); of rbd, 4k to 32M (4M)", NULL},
    {"refcount_bits", "width of a reference count, 1 to 64 (16)",
     "1|2|4|8|16|32|64"},
    {"lazy_refcounts", "on: update reference counts late (off)", "on|off"},
    {"compression_type", "of compressed clusters: zlib or zstd", "zlib|zstd"},
    {"preallocation", "off, metadata, falloc or full",
     "off|metadata|falloc|full"},
    {"data_file", "file for the data; it is created, or emptied", NULL},
    {"data_file_raw", "on: the data file is a raw image of the disk (off)",
     "on|off"},
    {"extended_l2", "on: a cluster has 32 parts, each known on its own (off)",
     "on|off"},
    {"encrypt.format", "luks: encrypt the data", "luks"},
    {"encrypt.key-secret", "id of the secret with the passphrase (--object)",
     NULL},
    {"encrypt.cipher-alg", "aes-128, aes-192 or aes-256 (aes-256)",
     "aes-128|aes-192|aes-256"},
    {"encrypt.cipher-mode", "xts or cbc (xts)", "xts|cbc"},
    {"encrypt.ivgen-alg", "plain, plain64 or essiv (plain64)",
     "plain|plain64|essiv"},
    {"encrypt.ivgen-hash-alg", "of essiv: sha256", "sha256"},
    {"encrypt.hash-alg", "of the passphrase: sha1, sha256, sha512... (sha256)",
     NULL},
    {"encrypt.iter-time", "milliseconds to try a passphrase (2000)", NULL},
    {NULL, NULL, NULL},
};

const struct format_option *format_option_find(const char *name)
{
    for (const struct format_option *f = option_help; f->name; f++) {
        if (strcmp(f->name, name) == 0) {
            return f;
        }
    }
    return NULL;
}

int format_options_print(const struct cli_command *c, const char *format,
                         const char *const *names)
{
    CLEANUP_ERROR struct error *err = NULL;

    if (image_check_format(format, &err) < 0) {
        return cli_error(c->name, err);
    }
    if (!names) {
        return cli_failed(c->name, "there is no format '%s' to %s", format,
                          c->name);
    }
    printf("Options of format '%s':\n", format);
    for (; *names; names++) {
        const struct format_option *f = format_option_find(*names);

        printf("  %-22s %s\n", *names, f ? f->help : "");
    }
    return cli_finish(c->name);
}
