/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * nbdelta --dump-config, for scripts: what `nbdkit --dump-config` is there.
 *
 * Paths are those of `make install`, given by the Makefile.  The directory of
 * modules is the one where they are looked for, by this process.
 */
#include "cli/dump-config.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "cli/cli.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "nbdelta/module.h"
#include "source/module.h"
#include "source/source.h"

/* A value is one line, whatever a path has in it. */
static void say(const char *key, const char *value)
{
    printf("%s=", key);
    for (const char *p = value; *p; p++) {
        putchar(*p == '\n' ? '?' : *p);
    }
    putchar('\n');
}

static void say_binary(void)
{
    char path[PATH_MAX];
    ssize_t len = readlink("/proc/self/exe", path, sizeof(path) - 1);

    if (len >= 0) { /* /proc may be missing */
        path[len] = '\0';
        say("binary", path);
    }
}

static void say_words(const char *key, const char *const *words)
{
    printf("%s=", key);
    for (size_t i = 0; words[i]; i++) {
        printf("%s%s", i > 0 ? " " : "", words[i]);
    }
    putchar('\n');
}

static void say_modules(void)
{
    const char *name;
    const void *rbd;

    for (size_t i = 0; (name = source_module_name(i)); i++) {
        const struct source_ops *ops;
        char key[64];

        (void)snprintf(key, sizeof(key), "module_%s", name);
        say(key, source_module_load(name, &ops, NULL) == 0 ? "yes" : "no");
    }
    say("module_rbd", module_load("nbdelta-block-rbd", "rbd", NBDELTA_VERSION,
                                  &rbd, NULL) == 0
                          ? "yes"
                          : "no");
}

int dump_config(void)
{
    struct utsname u = {.machine = "unknown", .sysname = "unknown"};

    (void)uname(&u);
    say_binary();
    say("bindir", NBDELTA_BINDIR);
    say("deflate", "yes");
    say("docdir", NBDELTA_DOCDIR);
    say_words("drivers", graph_driver_names());
    say("host_cpu", u.machine);
    say("host_os", u.sysname);
    say("libdir", NBDELTA_LIBDIR);
    say("luks", "yes");
    say("mandir", NBDELTA_MANDIR);
    say_modules();
    say("moduledir", module_dir());
    say("name", "nbdelta");
    say("plugindir", NBDELTA_PLUGINDIR);
    say("prefix", NBDELTA_PREFIX);
    say("sysconfdir", NBDELTA_SYSCONFDIR);
    say("tls", "yes");
    say("version", NBDELTA_VERSION);
    say("zstd", "yes");
    return cli_finish("--dump-config");
}
