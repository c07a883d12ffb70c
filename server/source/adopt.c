/* SPDX-License-Identifier: BSD-3-Clause */
/* Identities of what was begun: see adopt.h. */
#include "source/adopt.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "nbdelta/bytes.h"
#include "nbdelta/error.h"
#include "source/source.h"

#define DIGITS "0123456789abcdef"

static const char *text_at(const json_t *object, const char *key)
{
    return json_string_value(json_object_get(object, key));
}

static bool same_text(const char *a, const char *b)
{
    return a && b ? strcmp(a, b) == 0 : a == b;
}

int adopt_make_word(char word[ADOPT_WORD_MAX], struct error **errp)
{
    uint64_t random;

    if (getentropy(&random, sizeof(random)) < 0) {
        return error_set(errp, errno, "no random number: %s", strerror(errno));
    }
    (void)snprintf(word, ADOPT_WORD_MAX, "%016" PRIx64, random);
    return 0;
}

static json_t *describe_disk(const struct source_disk *d)
{
    return json_pack("{s:s, s:I, s:s*, s:s*, s:b}", "name", d->name, "size",
                     (json_int_t)d->size, "since", d->since, "reason",
                     d->reason, "checkpoint", (int)d->checkpoint);
}

json_t *adopt_describe(const struct source *s, const char *word,
                       const char *checkpoint)
{
    json_t *disks = json_array();
    int bad = disks ? 0 : -1;

    for (unsigned i = 0; bad == 0 && i < s->count; i++) {
        bad = s->disks[i].skip
                  ? 0
                  : json_array_append_new(disks, describe_disk(&s->disks[i]));
    }
    if (bad < 0) {
        json_decref(disks);
        return NULL;
    }
    return json_pack("{s:s, s:s*, s:o}", "instant", word, "checkpoint",
                     checkpoint, "disks", disks);
}

const char *adopt_word(const json_t *identity)
{
    const char *word = text_at(identity, "instant");

    return word && strlen(word) == ADOPT_WORD_MAX - 1 &&
                   strspn(word, DIGITS) == ADOPT_WORD_MAX - 1
               ? word
               : NULL;
}

const char *adopt_checkpoint(const json_t *identity, const char *id)
{
    static const char prefix[] = "nbdelta-";
    const char *name = text_at(identity, "checkpoint");
    size_t len = strlen(id);

    return name && strncmp(name, prefix, strlen(prefix)) == 0 &&
                   strncmp(name + strlen(prefix), id, len) == 0 &&
                   name[strlen(prefix) + len] == '-'
               ? name
               : NULL;
}

json_t *adopt_disk(const json_t *identity, const char *name)
{
    json_t *found = NULL;
    size_t i;
    json_t *disk;

    json_array_foreach (json_object_get(identity, "disks"), i, disk) {
        const char *is = text_at(disk, "name");
        found = !found && is && strcmp(is, name) == 0 ? disk : found;
    }
    return found;
}

bool adopt_fits(const struct source *s, const json_t *identity,
                const char *checkpoint)
{
    bool fits = same_text(text_at(identity, "checkpoint"), checkpoint);
    size_t wanted = 0;

    for (unsigned i = 0; i < s->count; i++) {
        const struct source_disk *d = &s->disks[i];
        const json_t *was = adopt_disk(identity, d->name);

        wanted += !d->skip;
        fits = fits &&
               (d->skip || (was && same_text(text_at(was, "since"), d->since)));
    }
    return fits &&
           wanted == json_array_size(json_object_get(identity, "disks"));
}

/* A reason is one of the words of source.h. */
static const char *reason_word(const char *text)
{
    static const char *const words[] = {
        "new-disk",           "no-checkpoint",       "base-bitmap",
        "bitmap-disabled",    "bitmap-inconsistent", "bitmap-busy",
        "checkpoint-pending", "no-bitmaps",          "resized",
    };

    for (size_t i = 0; text && i < ARRAY_SIZE(words); i++) {
        if (strcmp(text, words[i]) == 0) {
            return words[i];
        }
    }
    return text ? "no-checkpoint" : NULL;
}

void adopt_take_disks(struct source *s, const json_t *identity)
{
    for (unsigned i = 0; i < s->count; i++) {
        struct source_disk *d = &s->disks[i];
        const json_t *was = d->skip ? NULL : adopt_disk(identity, d->name);
        json_int_t size = json_integer_value(json_object_get(was, "size"));

        if (was) {
            d->size = size > 0 ? (uint64_t)size : 0;
            d->reason = reason_word(text_at(was, "reason"));
            d->checkpoint = json_is_true(json_object_get(was, "checkpoint"));
        }
    }
}

int adopt_gone(struct error **errp)
{
    return error_set(errp, ESTALE,
                     "what a run that was killed has frozen is frozen no more, "
                     "or was something else");
}
