/* SPDX-License-Identifier: BSD-3-Clause */
/* Options, errors and output of all sub-commands: see cli.h. */
#include "cli/cli.h"

#include <errno.h>
#include <getopt.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/text.h"

#define OPTIONS_MAX 99 /* of one command */

static const char *program; /* NULL: nbdelta */
static const char *error_mark = "";
static void (*give_help)(const struct cli_command *c); /* NULL: print it */

void cli_set_program(const char *name)
{
    program = name;
}

const char *cli_program(void)
{
    return program ? program : "nbdelta";
}

void cli_give_help(void (*fn)(const struct cli_command *c))
{
    give_help = fn;
}

static bool has_letter(const struct cli_option *o)
{
    return o->code > 0 && o->code < CLI_LONG;
}

/* --- Help --- */

#define HELP_INDENT 31

/* What an option does, beside it or, if it is long, below. */
static void help_line(const struct cli_option *o)
{
    char letter[8] = "    ";

    if (has_letter(o)) {
        (void)snprintf(letter, sizeof(letter), "-%c, ", o->code);
    }
    int width = printf("  %s--%s%s%s", letter, o->name,
                       o->arg && o->arg[0] != '[' ? "=" : "",
                       o->arg ? o->arg : "");
    if (width >= HELP_INDENT) {
        printf("\n");
        width = 0;
    }
    printf("%*s%s\n", HELP_INDENT - width, "", o->help);
}

void cli_print_options(const struct cli_option *options)
{
    printf("\nOptions:\n");
    for (const struct cli_option *o = options; o->name; o++) {
        help_line(o);
    }
    help_line(&(struct cli_option){"help", 'h', NULL, "print this text"});
}

static void print_command_help(const struct cli_command *c)
{
    const char *form = c->usage;
    const char *lead = "Usage:";

    while (*form) {
        size_t len = strcspn(form, "\n");
        printf("%-6s %s%s %.*s\n", lead, program ? program : "nbdelta ",
               program ? "" : c->name, (int)len, form);
        form += len + (form[len] == '\n');
        lead = "";
    }
    printf("\n%s", c->about);
    cli_print_options(c->options);
}

/* --- Parsing --- */

/* Tables for getopt_long; both hold all options and --help. */
static void getopt_tables(const struct cli_command *c, struct option *longs,
                          char *shorts)
{
    size_t n = 0;

    if (c->in_order) {
        *shorts++ = '-';
    }
    /* ':' makes getopt tell a missing argument from an unknown option. */
    *shorts++ = ':';
    for (const struct cli_option *o = c->options; o->name; o++) {
        if (n == OPTIONS_MAX) {
            abort(); /* else the last ones would be in the help only */
        }
        longs[n++] = (struct option){
            .name = o->name,
            .has_arg = !o->arg            ? no_argument
                       : o->arg[0] == '[' ? optional_argument
                                          : required_argument,
            .val = o->code,
        };
        if (has_letter(o)) {
            *shorts++ = (char)o->code;
            if (o->arg) {
                *shorts++ = ':';
            }
            if (o->arg && o->arg[0] == '[') {
                *shorts++ = ':';
            }
        }
    }
    longs[n++] = (struct option){.name = "help", .val = 'h'};
    longs[n] = (struct option){.name = NULL};
    *shorts++ = 'h';
    *shorts = '\0';
}

int cli_next(const struct cli_command *c, int argc, char **argv)
{
    struct option longs[OPTIONS_MAX + 2];
    char shorts[3 * OPTIONS_MAX + 4];

    getopt_tables(c, longs, shorts);
    opterr = 0;
    int code = getopt_long(argc, argv, shorts, longs, NULL);
    if (code == 'h') {
        (give_help ? give_help : print_command_help)(c);
        return CLI_HELP;
    }
    if (code != '?' && code != ':') {
        return code;
    }

    /* For a letter inside "-xyz" optind may still point at the word. */
    char letter[3] = {'-', (char)optopt, '\0'};
    const char *which = argv[optind - 1];
    bool is_long = strncmp(which, "--", 2) == 0;
    if (!is_long) {
        which = letter;
    }
    if (code == ':') {
        (void)cli_usage(c, "option '%s' needs an argument", which);
    } else if (is_long && optopt > 0) {
        (void)cli_usage(c, "'%s': this option takes no argument", which);
    } else {
        (void)cli_usage(c, "there is no option '%s'", which);
    }
    return CLI_BAD;
}

int cli_no_size(const struct cli_command *c, const char *text)
{
    return cli_usage(c, "'%s' is not a size: write bytes, or 64k, 512M, 1.5G",
                     text);
}

int cli_output_format(const struct cli_command *c, const char *text, bool *json)
{
    *json = strcmp(text, "json") == 0;
    if (!*json && strcmp(text, "human") != 0) {
        return cli_usage(c, "--output must be human or json, not '%s'", text);
    }
    return 0;
}

/* --- Errors --- */

__attribute__((format(printf, 2, 0))) static void print_error(const char *what,
                                                              const char *fmt,
                                                              va_list ap)
{
    CLEANUP_FREE char *text = NULL;
    CLEANUP_ERROR struct error *err = NULL;

    if (vasprintf(&text, fmt, ap) < 0) {
        text = NULL;
    }
    (void)error_set(&err, EINVAL, "%s", text ? text : "no memory");
    (void)cli_error(what, err);
}

int cli_status(int r)
{
    switch (-r) {
    case EUCLEAN:
        return CLI_DAMAGED;
    case EBUSY:
    case EAGAIN:
        return CLI_LOCKED;
    case ENOENT:
        return CLI_NONE;
    case ECANCELED:
        return CLI_INTERRUPTED;
    default:
        return EXIT_FAILURE;
    }
}

void cli_mark_errors(const char *mark)
{
    error_mark = mark;
}

int cli_error(const char *what, const struct error *err)
{
    CLEANUP_FREE char *shown = text_printable(what);

    (void)fflush(stdout);
    if (program) {
        fprintf(stderr, "%s%s: %s\n", error_mark, program, error_message(err));
    } else {
        fprintf(stderr, "%snbdelta: %s: %s\n", error_mark, shown ? shown : "?",
                error_message(err));
    }
    return cli_status(-error_code(err));
}

int cli_failed(const char *what, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    print_error(what, fmt, ap);
    va_end(ap);
    return EXIT_FAILURE;
}

int cli_reply_failed(const char *what, const json_t *reply)
{
    const json_t *e = json_object_get(reply, "error");
    const char *class = json_string_value(json_object_get(e, "class"));
    const char *desc = json_string_value(json_object_get(e, "desc"));
    CLEANUP_FREE char *text = NULL;

    if (json_object_get(reply, "return")) {
        return 0;
    }
    text = text_printable(desc ? desc : "reply without a result");
    return cli_failed(what, "%s: %s", class ? class : "error",
                      text ? text : "");
}

int cli_usage(const struct cli_command *c, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    print_error(c->name, fmt, ap);
    va_end(ap);
    fprintf(stderr, "Try '%s%s --help'.\n", program ? program : "nbdelta ",
            program ? "" : c->name);
    return CLI_USAGE;
}

/* --- Output --- */

/* As UTF-16 has it, for JSON. */
static void print_escaped(FILE *f, uint32_t code)
{
    if (code > 0xffff) {
        (void)fprintf(f, "\\u%04x", 0xd7c0 + (code >> 10));
        code = 0xdc00 + (code & 0x3ff);
    }
    (void)fprintf(f, "\\u%04x", code);
}

/* Print a part of a text in JSON.  The part has whole characters.  Control
 * characters, except for line ends, are in strings alone. */
static int print_json_part(const char *text, size_t size, void *opaque)
{
    const char *end = text + size;
    const char *plain = text; /* not printed yet, from there to @text */
    FILE *f = opaque;

    while (text < end) {
        uint32_t code = 0;
        size_t len = text_char(text, &code);

        if (len > 0 && (code == '\n' || text_is_plain(code))) {
            text += len;
            continue;
        }
        (void)fwrite(plain, 1, (size_t)(text - plain), f);
        print_escaped(f, len > 0 ? code : 0xfffd);
        text += len > 0 ? len : 1;
        plain = text;
    }
    (void)fwrite(plain, 1, (size_t)(end - plain), f);
    return 0;
}

void cli_print_json(const json_t *j)
{
    (void)json_dump_callback(j, print_json_part, stdout,
                             JSON_INDENT(4) | JSON_ENCODE_ANY);
    putchar('\n');
}

char *cli_json_line(const json_t *j, size_t *len)
{
    char *text = NULL;
    FILE *f = open_memstream(&text, len);

    if (!f) {
        return NULL;
    }
    int r = json_dump_callback(j, print_json_part, f,
                               JSON_COMPACT | JSON_ENCODE_ANY);
    (void)fputc('\n', f);
    bool failed = r < 0 || ferror(f);
    if (fclose(f) != 0 || failed) {
        free(text);
        return NULL;
    }
    return text;
}

int cli_finish(const char *what)
{
    if (fflush(stdout) == 0 && !ferror(stdout)) {
        return 0;
    }
    return cli_failed(what, "cannot write the output: %s", strerror(errno));
}
