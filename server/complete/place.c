/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The place of a word: see place.h.
 *
 * getopt is not asked, because it goes through whole command lines: what is
 * missing at the end of this one is what matters here.
 */
#include "complete/place.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* --- Options --- */

/* As getopt_long: the whole name, or the beginning of one name only. */
static const struct cli_option *find_long(const struct cli_command *c,
                                          const char *name, size_t len)
{
    const struct cli_option *found = NULL;
    unsigned count = 0;

    for (const struct cli_option *o = c->options; o->name; o++) {
        if (strncmp(o->name, name, len) != 0) {
            continue;
        }
        if (o->name[len] == '\0') {
            return o;
        }
        found = o;
        count++;
    }
    return count == 1 ? found : NULL;
}

static const struct cli_option *find_letter(const struct cli_command *c,
                                            char letter)
{
    for (const struct cli_option *o = c->options; o->name; o++) {
        if (o->code == letter) {
            return o;
        }
    }
    return NULL;
}

/* What one word has of an option. */
struct word {
    const struct cli_option *option; /* the last one in it; NULL: none known */
    const char *value;               /* in this word; NULL: none */
    bool wants_next;                 /* the next word is its value */
};

static struct word read_long(const struct cli_command *c, const char *text)
{
    size_t len = strcspn(text, "=");
    struct word w = {.option = find_long(c, text, len)};

    w.value = text[len] == '=' ? text + len + 1 : NULL;
    w.wants_next = w.option && w.option->arg && w.option->arg[0] != '[' &&
                   !w.value;
    return w;
}

static struct word read_letters(const struct cli_command *c, const char *text)
{
    struct word w = {.option = NULL};

    for (; *text; text++) {
        w.option = find_letter(c, *text);
        if (!w.option) {
            return w;
        }
        if (w.option->arg) {
            w.value = text[1] ? text + 1 : NULL;
            w.wants_next = !w.value && w.option->arg[0] != '[';
            return w;
        }
    }
    return w;
}

static bool is_option(const char *text)
{
    return text[0] == '-' && text[1] != '\0';
}

static struct word read_word(const struct cli_command *c, const char *text)
{
    return text[1] == '-' ? read_long(c, text + 2) : read_letters(c, text + 1);
}

/* --- Words --- */

static void add_given(struct place *p, const struct cli_option *option,
                      const char *value)
{
    if (option) {
        p->given[p->given_count++] = (struct given){option, value};
    }
}

/* The last word. */
static void find_last(struct place *p, const char *text,
                      const struct cli_option *waiting)
{
    if (waiting) {
        p->option = waiting;
        return;
    }
    if (p->options_end || text[0] != '-') {
        return;
    }
    struct word w = is_option(text) ? read_word(p->command, text)
                                    : (struct word){.option = NULL};
    if (w.option && w.value && w.option->arg) {
        p->option = w.option;
        p->head = (size_t)(w.value - text);
    } else {
        p->naming = true;
    }
}

int place_find(struct place *p, const struct cli_command *c, char *const *words,
               size_t count)
{
    const struct cli_option *waiting = NULL;

    *p = (struct place){.command = c};
    p->given = calloc(count, sizeof(*p->given));
    p->operands = calloc(count, sizeof(*p->operands));
    if (!p->given || !p->operands) {
        return -ENOMEM;
    }
    for (size_t i = 0; i + 1 < count; i++) {
        if (waiting) {
            add_given(p, waiting, words[i]);
            waiting = NULL;
        } else if (p->options_end || !is_option(words[i])) {
            p->operands[p->operand_count++] = words[i];
        } else if (strcmp(words[i], "--") == 0) {
            p->options_end = true;
        } else {
            struct word w = read_word(c, words[i]);

            waiting = w.wants_next ? w.option : NULL;
            add_given(p, waiting ? NULL : w.option, w.value);
        }
    }
    find_last(p, words[count - 1], waiting);
    return 0;
}

void place_free(struct place *p)
{
    free(p->given);
    free(p->operands);
}

bool place_given(const struct place *p, const char *option)
{
    for (size_t i = 0; i < p->given_count; i++) {
        if (strcmp(p->given[i].option->name, option) == 0) {
            return true;
        }
    }
    return false;
}

const char *place_value(const struct place *p, const char *option)
{
    const char *value = NULL;

    for (size_t i = 0; i < p->given_count; i++) {
        if (strcmp(p->given[i].option->name, option) == 0) {
            value = p->given[i].value;
        }
    }
    return value;
}

/* --- Arguments --- */

bool kind_has(const char *kind, size_t len, const char *word)
{
    size_t n = strlen(word);

    for (size_t i = 0; i < len;) {
        size_t each = strcspn(kind + i, "|");

        each = each > len - i ? len - i : each;
        if (each == n && strncmp(kind + i, word, n) == 0) {
            return true;
        }
        i += each + 1;
    }
    return false;
}

/* The kind that @text begins with; *next is behind it, or the same kind again
 * if that is repeated. */
static struct operand_kind read_kind(const char *text, const char **next)
{
    struct operand_kind k = {.text = text, .len = strcspn(text, " ")};

    *next = text + k.len + (text[k.len] == ' ');
    if (k.len > 3 && strncmp(text + k.len - 3, "...", 3) == 0) {
        k.len -= 3;
        *next = text;
    }
    if (text[0] == '[' && text[k.len - 1] == ']') {
        k.text++;
        k.len -= 2;
        k.optional = true;
    }
    return k;
}

/* Walk through all arguments.  Returns what is left of the kinds then; the
 * first argument whose kind has @word goes to *found. */
static const char *walk(const struct place *p, const char *word,
                        const char **found)
{
    const char *kinds = p->command->operands ? p->command->operands : "";
    size_t i = 0;

    while (*kinds && i < p->operand_count) {
        const char *next;
        struct operand_kind k = read_kind(kinds, &next);

        if (k.optional && !kind_has(k.text, k.len, p->operands[i])) {
            kinds = next;
            continue;
        }
        if (word && !*found && !k.optional && kind_has(k.text, k.len, word)) {
            *found = p->operands[i];
        }
        kinds = next;
        i++;
    }
    return kinds;
}

int place_kinds(const struct place *p, struct operand_kind *kinds)
{
    const char *next = walk(p, NULL, NULL);
    int n = 0;

    while (*next && n < 2) {
        kinds[n] = read_kind(next, &next);
        if (!kinds[n++].optional) {
            break;
        }
    }
    return n;
}

const char *place_operand(const struct place *p, const char *word)
{
    const char *found = NULL;

    (void)walk(p, word, &found);
    return found;
}
