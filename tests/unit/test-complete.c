/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Completion: which words a line of bash has, what comes back in quotes, where
 * on a command line a word is, which names are offered, and that a child that
 * hangs or crashes is not waited for.
 */
#include <check.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "complete/aside.h"
#include "complete/line.h"
#include "complete/offer.h"
#include "complete/place.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"

#define BREAKS " \t\n\"'@><=;|&(:"

/* --- Lines of bash --- */

static const struct {
    const char *text;
    const char *words; /* with '|' between */
    size_t skip;
    char quote;
    bool tilde;
    bool unknown;
} lines[] = {
    {"", "", 0, 0, false, false},
    {"n ", "n|", 0, 0, false, false},
    {"  n  a\tb", "n|a|b", 0, 0, false, false},
    {"n a\\ b", "n|a b", 0, 0, false, false},
    {"n 'a b' \"c d\"e", "n|a b|c de", 0, 0, false, false},
    {"n '' \"\" ", "n|||", 0, 0, false, false},
    {"n a=b:c", "n|a=b:c", 4, 0, false, false},
    {"n a\\=b", "n|a=b", 0, 0, false, false},
    {"n \"a=b", "n|a=b", 0, '"', false, false},
    {"n t\"wo w\"", "n|two w", 0, 0, false, false},
    {"n a=\"b c\"d", "n|a=b cd", 2, 0, false, false},
    {"n x'a=b", "n|xa=b", 1, '\'', false, false},
    {"n \"a\\\"\\$\\x", "n|a\"$\\x", 0, '"', false, false},
    {"n 'a\\", "n|a\\", 0, '\'', false, false},
    {"n a\\", "n|a", 0, 0, false, false},
    {"n ~/a", "n|~/a", 0, 0, true, false},
    {"n \\~/a", "n|~/a", 0, 0, false, false},
    {"n '$a`'", "n|$a`", 0, 0, false, false},
    {"n \"$a", "n|$a", 0, '"', false, true},
    {"n $a b", "n|$a|b", 0, 0, false, false},
    {"n `", "n|`", 0, 0, false, true},
};

static char *join(const struct line *l)
{
    char *text = NULL;
    size_t len = 0;
    FILE *f = open_memstream(&text, &len);

    for (size_t i = 0; i < l->count; i++) {
        fprintf(f, "%s%s", i > 0 ? "|" : "", l->words[i]);
    }
    fclose(f);
    return text;
}

START_TEST(words_lose_their_quotes)
{
    struct line l;

    ck_assert_int_eq(line_split(&l, lines[_i].text, BREAKS), 0);
    CLEANUP_FREE char *words = join(&l);
    ck_assert_str_eq(words, lines[_i].words);
    ck_assert_uint_eq(l.skip, lines[_i].skip);
    ck_assert_int_eq(l.quote, lines[_i].quote);
    ck_assert_int_eq(l.tilde, lines[_i].tilde);
    ck_assert_int_eq(l.unknown, lines[_i].unknown);
    line_free(&l);
}
END_TEST

static const char *const names[] = {
    "plain",  "two words", "o'clock", "q\"t",         "$(x)", "`x`", "a\\b",
    ";x&|<>", "b=c:d@e",   "~",       "na\xc3\xafve", "*?[]", "#",   "{a,b}",
};

/* The text that makes @name the last word, in @quote. */
static char *completed(const char *name, char quote)
{
    char text[8] = {'n', ' ', quote};
    struct line l;
    char *all = NULL;
    size_t len = 0;
    FILE *f = open_memstream(&all, &len);

    ck_assert_int_eq(line_split(&l, text, BREAKS), 0);
    fputs(text, f);
    ck_assert(line_put(&l, name, f));
    fprintf(f, "%.1s", text + 2);
    fclose(f);
    line_free(&l);
    return all;
}

START_TEST(what_is_put_in_is_the_name_and_no_more)
{
    static const char quotes[] = {'\0', '\'', '"'};

    for (size_t i = 0; i < ARRAY_SIZE(quotes); i++) {
        CLEANUP_FREE char *text = completed(names[_i], quotes[i]);
        struct line l;

        ck_assert_int_eq(line_split(&l, text, BREAKS), 0);
        ck_assert_uint_eq(l.count, 2);
        ck_assert_str_eq(l.words[1], names[_i]);
        ck_assert(!l.quote && !l.tilde && !l.unknown);
        line_free(&l);
    }
}
END_TEST

/* What bash replaces is behind the last break. */
static void put_is(const char *text, const char *word, const char *expected)
{
    CLEANUP_FREE char *out = NULL;
    size_t len = 0;
    FILE *f = open_memstream(&out, &len);
    struct line l;

    ck_assert_int_eq(line_split(&l, text, BREAKS), 0);
    bool put = line_put(&l, word, f);
    fclose(f);
    ck_assert_int_eq(put, expected != NULL);
    ck_assert_str_eq(out, expected ? expected : "");
    line_free(&l);
}

START_TEST(only_the_last_piece_is_replaced)
{
    put_is("n --x=a", "--x=a b", "a\\ b");
    put_is("n --x=\"a", "--x=a b", "a b");
    put_is("n nbd:", "nbd://", "//");
    put_is("n ~/a", "~/a b", "~/a\\ b");
    put_is("n \\~/a", "~/a b", "\\~/a\\ b");
    put_is("n a=", "b=c", NULL);  /* another word */
    put_is("n $a", "$ab", NULL);  /* bash would evaluate it */
    put_is("n \"", "hi!x", NULL); /* bash's history would */
    put_is("n '", "hi!x", "hi!x");
}
END_TEST

/* --- Places --- */

static const struct cli_option options[] = {
    {"format", 'f', "FORMAT", ""},
    {"force", 'F', NULL, ""},
    {"wait", 'w', "[=ready|end]", ""},
    {"output", CLI_LONG, "human|json", ""},
    {NULL, 0, NULL, NULL},
};
static const struct cli_command command = {
    .name = "test",
    .options = options,
    .operands = "[add|remove] IMAGE|URI BITMAP...",
};

static const struct {
    const char *words; /* with spaces between */
    const char *where; /* "option", "--NAME" and the head, or kinds */
} places[] = {
    {"-", "naming"},
    {"--fo", "naming"},
    {"--wait", "naming"},
    {"-f ", "--format 0"},
    {"-Ff ", "--format 0"},
    {"-fq", "--format 2"},
    {"--format q", "--format 0"},
    {"--format -", "--format 0"},
    {"--form q", "--format 0"},
    {"--fo q", "add|remove IMAGE|URI"}, /* two begin so */
    {"--output=j", "--output 9"},
    {"--o=j", "--output 4"},
    {"--wait=e", "--wait 7"},
    {"--wait ", "add|remove IMAGE|URI"}, /* it may be left out */
    {"-we", "--wait 2"},
    {"--force=x", "naming"},
    {"--nothing x", "add|remove IMAGE|URI"},
    {"", "add|remove IMAGE|URI"},
    {"-f raw add ", "IMAGE|URI"},
    {"-f raw addi ", "BITMAP"},
    {"add a ", "BITMAP"},
    {"add a b c -F ", "BITMAP"},
    {"-- -", "add|remove IMAGE|URI"},
    {"add -- -x -", "BITMAP"},
};

static void describe(const struct place *p, char *out, size_t size)
{
    struct operand_kind kinds[2];

    if (p->naming) {
        snprintf(out, size, "naming");
    } else if (p->option) {
        snprintf(out, size, "--%s %zu", p->option->name, p->head);
    } else if (place_kinds(p, kinds) == 2) {
        snprintf(out, size, "%.*s %.*s", (int)kinds[0].len, kinds[0].text,
                 (int)kinds[1].len, kinds[1].text);
    } else {
        snprintf(out, size, "%.*s", (int)kinds[0].len, kinds[0].text);
    }
}

START_TEST(a_word_has_its_place)
{
    struct place p;
    struct line l;
    char where[64];

    ck_assert_int_eq(line_split(&l, places[_i].words, ""), 0);
    ck_assert_int_eq(place_find(&p, &command, l.words, l.count), 0);
    describe(&p, where, sizeof(where));
    ck_assert_str_eq(where, places[_i].where);
    place_free(&p);
    line_free(&l);
}
END_TEST

START_TEST(what_came_before_is_known)
{
    char *words[] = {(char[]){"-fraw"},         (char[]){"add"}, (char[]){"a"},
                     (char[]){"--output=json"}, (char[]){"b"},   (char[]){""}};
    struct place p;

    ck_assert_int_eq(place_find(&p, &command, words, ARRAY_SIZE(words)), 0);
    ck_assert_str_eq(place_value(&p, "format"), "raw");
    ck_assert_str_eq(place_value(&p, "output"), "json");
    ck_assert(!place_given(&p, "force"));
    ck_assert_ptr_null(place_value(&p, "force"));
    ck_assert_str_eq(place_operand(&p, "IMAGE"), "a");
    ck_assert_str_eq(place_operand(&p, "BITMAP"), "b");
    ck_assert_ptr_null(place_operand(&p, "DIR"));
    place_free(&p);
}
END_TEST

/* --- Offers --- */

struct printed {
    char *text;
    size_t len;
    struct offers o;
};

static void begin(struct printed *p, const char *typed)
{
    *p = (struct printed){NULL};
    p->o = (struct offers){.out = open_memstream(&p->text, &p->len),
                           .typed = typed};
}

static void printed_is(struct printed *p, const char *expected)
{
    fclose(p->o.out);
    ck_assert_str_eq(p->text, expected);
    free(p->text);
}

START_TEST(names_that_do_more_than_be_read_are_left_out)
{
    static const char *const bad[] = {
        "\n",           "a\nb",         "\ta",  "\x1b[1m",
        "\x7f",         "\xc2\x9b",     "\xff", "\xe2\x80\xae",
        "\xed\xa0\x80", "\xef\xbf\xbd", "",
    };
    struct printed p;

    begin(&p, "");
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        offer(&p.o, bad[i], NULL);
    }
    offer(&p.o, "good", "a\nb\x1b[1m");
    printed_is(&p, "good\ta?b?[1m\n");
    begin(&p, "a\nb=");
    p.o.head = 4;
    offer(&p.o, "good", NULL);
    offer_files(&p.o);
    printed_is(&p, "");
}
END_TEST

START_TEST(only_what_was_begun_is_offered)
{
    struct printed p;

    begin(&p, "--x=a");
    p.o.head = 4;
    offer_words(&p.o, "ab|b|a|xa");
    offer_files(&p.o);
    printed_is(&p, "--x=ab\n--x=a\n\tfiles\t--x=\n");
    begin(&p, "");
    p.o.no_options = true;
    offer_words(&p.o, "-r|r");
    printed_is(&p, "r\n");
    begin(&p, "");
    for (int i = 0; i < OFFERS_MAX + 10; i++) {
        offer(&p.o, "a", NULL);
    }
    ck_assert_uint_eq(p.o.count, OFFERS_MAX);
    fclose(p.o.out);
    free(p.text);
}
END_TEST

/* --- Aside --- */

enum { ENDS, HANGS, CRASHES, FLOODS };

static void ask(struct offers *o, const void *how)
{
    offer(o, "first", NULL);
    (void)fputs("half a li", o->out);
    (void)fflush(o->out);
    (void)puts("to standard output");
    switch (*(const int *)how) {
    case HANGS:
        for (;;) {
            (void)pause();
        }
    case CRASHES:
        (void)raise(SIGKILL);
        break;
    case FLOODS:
        for (;;) {
            (void)fputs("\nflood", o->out);
        }
    default:
        break;
    }
}

START_TEST(how_long_is_the_users_choice)
{
    static const struct {
        const char *text;
        int ms;
    } choices[] = {
        {"1", 1},         {"60000", 60000}, {"", ASIDE_MS},
        {"0", ASIDE_MS},  {"-1", ASIDE_MS}, {"60001", ASIDE_MS},
        {"1x", ASIDE_MS},
    };

    for (size_t i = 0; i < ARRAY_SIZE(choices); i++) {
        (void)setenv("NBDELTA_COMPLETE_TIMEOUT", choices[i].text, 1);
        ck_assert_int_eq(aside_ms(), choices[i].ms);
    }
    (void)unsetenv("NBDELTA_COMPLETE_TIMEOUT");
    ck_assert_int_eq(aside_ms(), ASIDE_MS);
}
END_TEST

START_TEST(a_child_has_its_time_and_no_more)
{
    struct timespec before, after;
    struct printed p;

    /* Enough for a busy machine to offer something. */
    (void)setenv("NBDELTA_COMPLETE_TIMEOUT", _i == HANGS ? "3000" : "60000", 1);
    begin(&p, "");
    (void)clock_gettime(CLOCK_MONOTONIC, &before);
    aside(&p.o, ask, &_i);
    (void)clock_gettime(CLOCK_MONOTONIC, &after);
    if (_i == FLOODS) {
        fclose(p.o.out);
        ck_assert_uint_le(p.len, 4 << 20);
        free(p.text);
    } else {
        printed_is(&p, "first\n");
    }
    /* It would be for ever. */
    ck_assert_int_lt(after.tv_sec - before.tv_sec, 59);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("complete");
    TCase *tc = tcase_create("complete");
    tcase_add_loop_test(tc, words_lose_their_quotes, 0, ARRAY_SIZE(lines));
    tcase_add_loop_test(tc, what_is_put_in_is_the_name_and_no_more, 0,
                        ARRAY_SIZE(names));
    tcase_add_test(tc, only_the_last_piece_is_replaced);
    tcase_add_loop_test(tc, a_word_has_its_place, 0, ARRAY_SIZE(places));
    tcase_add_test(tc, what_came_before_is_known);
    tcase_add_test(tc, names_that_do_more_than_be_read_are_left_out);
    tcase_add_test(tc, only_what_was_begun_is_offered);
    tcase_add_test(tc, how_long_is_the_users_choice);
    tcase_add_loop_test(tc, a_child_has_its_time_and_no_more, ENDS, FLOODS + 1);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
