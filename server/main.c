/* SPDX-License-Identifier: BSD-3-Clause */
/* nbdelta: the sub-commands. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "commands.h"

static const struct {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *about;
} commands[] = {
    { "serve", cmd_serve, "serve disks over NBD, track and back them up" },
    { "create", cmd_create, "create an image" },
    { "info", cmd_info, "describe an image or an NBD export" },
    { "map", cmd_map, "list data, holes or dirty areas" },
    { "qmp", cmd_qmp, "send a command to a running daemon" },
};

static int print_help(FILE *to)
{
    (void)fprintf(to, "Usage: nbdelta COMMAND [OPTION]... [ARGUMENT]...\n\n");
    for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++) {
        (void)fprintf(to, "  %-8s %s\n", commands[i].name, commands[i].about);
    }
    (void)fprintf(to, "\n'nbdelta COMMAND --help' tells more; so does "
                      "nbdelta-COMMAND(1).\n");
    return to == stdout ? EXIT_SUCCESS : CLI_USAGE;
}

int main(int argc, char **argv)
{
    const char *name = argc > 1 ? argv[1] : NULL;

    if (!name) {
        return print_help(stderr);
    }
    if (strcmp(name, "--help") == 0 || strcmp(name, "help") == 0) {
        return print_help(stdout);
    }
    if (strcmp(name, "--version") == 0) {
        (void)printf("nbdelta %s\n", NBDELTA_VERSION);
        return EXIT_SUCCESS;
    }
    for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++) {
        if (strcmp(name, commands[i].name) == 0) {
            return commands[i].run(argc - 1, argv + 1);
        }
    }
    (void)fprintf(stderr, "nbdelta: there is no command '%s' (see 'nbdelta "
                          "--help')\n", name);
    return CLI_USAGE;
}
