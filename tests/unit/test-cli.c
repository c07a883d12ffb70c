/* SPDX-License-Identifier: BSD-3-Clause */
/* Command lines: options, arguments, usage errors, and what is printed. */
#include <check.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/text.h"

#define OPT_OUTPUT CLI_LONG

static const struct cli_option options[] = {
    {"format", 'f', "FORMAT", "the format"},
    {"quiet", 'q', NULL, "say nothing"},
    {"output", OPT_OUTPUT, "human|json", "for whom"},
    {NULL, 0, NULL, NULL},
};

static const struct cli_command command = {
    .name = "test",
    .usage = "[-q] FILE",
    .about = "Nothing.\n",
    .options = options,
};

/* getopt permutes the words. */
static char *words[16];

static int next(void)
{
    int argc = 0;

    while (words[argc]) {
        argc++;
    }
    return cli_next(&command, argc, words);
}

static void start(char *const given[])
{
    int i = 0;

    words[0] = (char[]){"test"};
    for (; given[i]; i++) {
        words[i + 1] = given[i];
    }
    words[i + 1] = NULL;
    optind = 0;
}
#define START(...) start((char *const[]){__VA_ARGS__, NULL})

START_TEST(options_and_arguments_mix)
{
    START((char[]){"a"}, (char[]){"-qfraw"}, (char[]){"b"},
          (char[]){"--format"}, (char[]){"qcow2"}, (char[]){"--output=json"},
          (char[]){"--"}, (char[]){"-c"});
    ck_assert_int_eq(next(), 'q');
    ck_assert_int_eq(next(), 'f');
    ck_assert_str_eq(optarg, "raw");
    ck_assert_int_eq(next(), 'f');
    ck_assert_str_eq(optarg, "qcow2");
    ck_assert_int_eq(next(), OPT_OUTPUT);
    ck_assert_str_eq(optarg, "json");
    ck_assert_int_eq(next(), CLI_END);
    ck_assert_str_eq(words[optind], "a");
    ck_assert_str_eq(words[optind + 1], "b");
    ck_assert_str_eq(words[optind + 2], "-c");
    ck_assert_ptr_null(words[optind + 3]);
}
END_TEST

/* What is printed on standard error while next() runs. */
static char *complaint(void)
{
    char *text = NULL;
    size_t len = 0;
    FILE *real = stderr;

    stderr = open_memstream(&text, &len);
    ck_assert_ptr_nonnull(stderr);
    ck_assert_int_eq(next(), CLI_BAD);
    ck_assert_int_eq(fclose(stderr), 0);
    stderr = real;
    return text;
}

START_TEST(bad_options_are_named)
{
    static const struct {
        const char *word;
        const char *says;
    } bad[] = {
        {"--bogus", "nbdelta: test: there is no option '--bogus'\n"},
        {"-x", "nbdelta: test: there is no option '-x'\n"},
        {"-qx", "nbdelta: test: there is no option '-x'\n"},
        {"-f", "nbdelta: test: option '-f' needs an argument\n"},
        {"--format", "nbdelta: test: option '--format' needs an argument\n"},
        {"--quiet=1",
         "nbdelta: test: '--quiet=1': this option takes no argument\n"},
        {"--\033[2J", "nbdelta: test: there is no option '--?[2J'\n"},
    };

    CLEANUP_FREE char *word = strdup(bad[_i].word);
    START(word);
    if (strncmp(word, "-q", 2) == 0) {
        ck_assert_int_eq(next(), 'q');
    }
    CLEANUP_FREE char *text = complaint();
    ck_assert_uint_eq(strlen(bad[_i].says),
                      strlen(text) - strlen("Try 'nbdelta test --help'.\n"));
    ck_assert_int_eq(strncmp(text, bad[_i].says, strlen(bad[_i].says)), 0);
}
END_TEST

START_TEST(output_is_human_or_json)
{
    bool json = false;

    ck_assert_int_eq(cli_output_format(&command, "json", &json), 0);
    ck_assert(json);
    ck_assert_int_eq(cli_output_format(&command, "human", &json), 0);
    ck_assert(!json);
    ck_assert_int_eq(cli_output_format(&command, "", &json), CLI_USAGE);
}
END_TEST

START_TEST(control_characters_are_not_printable)
{
    CLEANUP_FREE char *text = text_printable("a\tb\033c\177\xc3\xa9");
    ck_assert_str_eq(text, "a?b?c?\xc3\xa9");
}
END_TEST

int main(void)
{
    Suite *s = suite_create("cli");
    TCase *tc = tcase_create("cli");
    tcase_add_test(tc, options_and_arguments_mix);
    tcase_add_loop_test(tc, bad_options_are_named, 0, 7);
    tcase_add_test(tc, output_is_human_or_json);
    tcase_add_test(tc, control_characters_are_not_printable);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
