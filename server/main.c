/* SPDX-License-Identifier: BSD-3-Clause */
/* nbdelta: find the sub-command and run it. */
#include <gnutls/gnutls.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/commands.h"
#include "cli/dump-config.h"
#include "cli/nearest.h"
#include "complete/complete.h"
#include "process.h"

static const struct sub_command commands[] = {
    {"serve", cmd_serve, "serve disk images over NBD"},
    {"backup", cmd_backup,
     "copy disks into a directory: all, then what changed"},
    {"backup-begin", cmd_backup_begin,
     "freeze disks of a daemon, for clients to pull"},
    {"backup-end", cmd_backup_end, "end a backup that clients have pulled"},
    {"points", cmd_points, "list the points of a backup directory"},
    {"verify", cmd_verify, "compare a backup directory with its hashes"},
    {"restore", cmd_restore, "write disks of a backup point to images"},
    {"create", cmd_create, "create an empty disk image"},
    {"info", cmd_info, "show what an image or an export is"},
    {"check", cmd_check, "check the metadata of an image, or repair them"},
    {"compare", cmd_compare, "compare the content of two disks"},
    {"resize", cmd_resize, "grow or shrink the disk of an image"},
    {"map", cmd_map, "show which ranges hold data or are dirty"},
    {"measure", cmd_measure, "tell how large an image will be"},
    {"snapshot", cmd_snapshot, "list, make or apply internal snapshots"},
    {"bitmap", cmd_bitmap, "list or change the bitmaps of an image"},
    {"amend", cmd_amend, "give an image other properties"},
    {"rebase", cmd_rebase, "give an image another backing file"},
    {"prune", cmd_prune, "remove points of a backup directory by rules"},
    {"qmp", cmd_qmp, "send a command to the monitor of a daemon"},
    {"events", cmd_events, "print the events of a monitor as they come"},
    {"metrics", cmd_metrics, "print what a monitor tells, for Prometheus"},
    {NULL, NULL, NULL},
};

enum { OPT_DUMP_CONFIG = CLI_LONG, OPT_COMPLETE };

/* Only one of these is given, and first. */
static const struct cli_option options[] = {
    {"version", 'V', NULL, "print the version"},
    {"dump-config", OPT_DUMP_CONFIG, NULL,
     "print how this program was built, KEY=VALUE a line"},
    {"complete", OPT_COMPLETE, "[=bash]",
     "print what can stand for the last WORD, for shells"},
    {NULL, 0, NULL, NULL},
};

static void print_commands(void)
{
    printf("Usage: nbdelta COMMAND [ARGUMENT...]\n"
           "       nbdelta COMMAND --help\n"
           "       nbdelta --complete WORD...\n"
           "\n"
           "Storage daemon and backup tool for disk images.\n"
           "\n"
           "Commands:\n");
    for (const struct sub_command *c = commands; c->name; c++) {
        printf("  %-12s %s\n", c->name, c->about);
    }
    cli_print_options(options);
}

static const struct sub_command *find_command(const char *name)
{
    for (const struct sub_command *c = commands; c->name; c++) {
        if (strcmp(c->name, name) == 0) {
            return c;
        }
    }
    return NULL;
}

static int tell_unknown(const char *what, const char *name)
{
    struct nearest near;

    nearest_begin(&near, name);
    for (const struct sub_command *c = commands; c->name; c++) {
        nearest_try(&near, c->name);
    }
    (void)cli_failed(name, "there is no such %s%s%s%s", what,
                     near.best[0] ? "; is '" : "", near.best,
                     near.best[0] ? "' meant?" : "");
    fprintf(stderr, "Try 'nbdelta --help'.\n");
    return CLI_USAGE;
}

/* "help" and "help COMMAND" */
static int cmd_help(int argc, char **argv)
{
    char help[] = "--help";

    if (argc < 2) {
        print_commands();
        return cli_finish("help");
    }
    const struct sub_command *c = find_command(argv[1]);
    if (!c) {
        return tell_unknown("command", argv[1]);
    }
    char *args[] = {argv[1], help, NULL};
    return c->run(2, args);
}

static bool is_called(const char *path, const char *name)
{
    const char *slash = path ? strrchr(path, '/') : NULL;

    return path && strcmp(slash ? slash + 1 : path, name) == 0;
}

int main(int argc, char **argv)
{
    if (!process_begin()) {
        return EXIT_FAILURE; /* and nobody to tell why */
    }
    if (is_called(argv[0], STORAGE_DAEMON)) {
        process_end(cmd_storage_daemon(argc, argv));
    }
    if (argc < 2) {
        fprintf(stderr, "nbdelta: a command is missing: "
                        "try 'nbdelta --help'\n");
        return CLI_USAGE;
    }
    const char *name = argv[1];
    if (strcmp(name, "help") == 0) {
        return cmd_help(argc - 1, argv + 1);
    }
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0) {
        print_commands();
        return cli_finish("help");
    }
    if (strncmp(name, "--complete", 10) == 0) {
        return complete(argc - 1, argv + 1, commands, options);
    }
    if (strcmp(name, "--dump-config") == 0) {
        return dump_config();
    }
    if (strcmp(name, "--version") == 0 || strcmp(name, "-V") == 0) {
        printf("nbdelta %s\n", NBDELTA_VERSION);
        return cli_finish("version");
    }
    const struct sub_command *c = find_command(name);
    if (!c) {
        return tell_unknown(name[0] == '-' ? "option" : "command", name);
    }
    /* A command that looks at backups must not take a hash that cannot be
     * computed for one that is wrong.  Only a daemon has to start fast. */
    if (c->run != cmd_serve && !gnutls_check_version(NULL)) {
        return cli_failed(name, "%s",
                          gnutls_strerror(GNUTLS_E_UNIMPLEMENTED_FEATURE));
    }
    process_end(c->run(argc - 1, argv + 1));
}
