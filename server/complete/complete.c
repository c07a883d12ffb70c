/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Completion: see complete.h.
 *
 * A command's options are asked of the command itself: it is called with
 * --help, and cli_next() hands over the table instead of printing it.  So there
 * is no second list of options.
 */
#include "complete/complete.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "complete/kinds.h"
#include "complete/line.h"
#include "complete/offer.h"
#include "complete/place.h"
#include "nbdelta/cleanup.h"

/* --- Options and commands --- */

static void offer_options(struct offers *o, const struct cli_option *options)
{
    for (; options->name; options++) {
        char name[64];

        if (options->code > 0 && options->code < CLI_LONG) {
            (void)snprintf(name, sizeof(name), "-%c", options->code);
            offer(o, name, options->help);
        }
        (void)snprintf(name, sizeof(name), "--%s", options->name);
        offer(o, name, options->help);
    }
}

static void offer_names_of_options(struct offers *o,
                                   const struct cli_option *options)
{
    const struct cli_option help[] = {
        {"help", 'h', NULL, "print a text about it"},
        {NULL, 0, NULL, NULL},
    };

    offer_options(o, options);
    offer_options(o, help);
}

static void offer_commands(struct offers *o, const struct sub_command *commands)
{
    for (; commands->name; commands++) {
        offer(o, commands->name, commands->about);
    }
}

/* --- Words of a command --- */

static void complete_place(struct offers *o, const struct place *p)
{
    struct operand_kind kinds[2];

    if (p->naming) {
        offer_names_of_options(o, p->command->options);
        return;
    }
    o->head = p->head;
    if (p->option) {
        const char *kind = p->option->arg;
        size_t len = strlen(kind);

        if (kind[0] == '[') { /* "[=ready|end]" */
            kind += 2;
            len -= 3;
        }
        kinds_offer(o, p, kind, len);
        return;
    }
    o->no_options = !p->options_end;
    int n = place_kinds(p, kinds);
    for (int i = 0; i < n; i++) {
        kinds_offer(o, p, kinds[i].text, kinds[i].len);
    }
}

static const struct cli_command *table; /* of the command that was asked */

static void take_table(const struct cli_command *c)
{
    table = c;
}

static void complete_command(struct offers *o, const struct sub_command *c,
                             char **words, size_t count)
{
    char name[] = "command";
    char help[] = "--help";
    char *args[] = {name, help, NULL};
    struct place p;

    cli_give_help(take_table);
    (void)c->run(2, args);
    if (!table) {
        return;
    }
    if (place_find(&p, table, words, count) == 0) {
        complete_place(o, &p);
    }
    place_free(&p);
}

static void complete_words(struct offers *o, char **words, size_t count,
                           const struct sub_command *commands,
                           const struct cli_option *options)
{
    const char *name = words[0];

    if (count == 1 || (count == 2 && strcmp(name, "help") == 0)) {
        offer_commands(o, commands);
        if (count == 1) {
            offer(o, "help", "print a text about a command");
            offer_names_of_options(o, options);
        }
        return;
    }
    for (; commands->name; commands++) {
        if (strcmp(commands->name, name) == 0) {
            complete_command(o, commands, words + 1, count - 1);
            return;
        }
    }
}

/* --- Shells --- */

static int complete_for_bash(char **argv, const struct sub_command *commands,
                             const struct cli_option *options)
{
    struct line line;
    int r = line_split(&line, argv[1], argv[2]);

    if (r == 0 && line.count > 1) {
        struct offers o = {
            .out = stdout,
            .typed = line.words[line.count - 1],
            .line = &line,
        };

        complete_words(&o, line.words + 1, line.count - 1, commands, options);
    }
    line_free(&line);
    return fflush(stdout) == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

int complete(int argc, char **argv, const struct sub_command *commands,
             const struct cli_option *options)
{
    (void)signal(SIGPIPE, SIG_DFL);
    if (strcmp(argv[0], "--complete=bash") == 0 && argc == 3) {
        return complete_for_bash(argv, commands, options);
    }
    if (strcmp(argv[0], "--complete") != 0 || argc < 2) {
        return CLI_USAGE;
    }
    struct offers o = {.out = stdout, .typed = argv[argc - 1]};

    complete_words(&o, argv + 1, (size_t)argc - 1, commands, options);
    return fflush(stdout) == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
