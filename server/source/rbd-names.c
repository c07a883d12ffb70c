/* SPDX-License-Identifier: BSD-3-Clause */
/* Images of Ceph as a source: see rbd-names.h. */
#include "source/rbd-names.h"

#include <errno.h>
#include <gnutls/crypto.h>
#include <gnutls/gnutls.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/options.h"

/* Where the name of the image begins in @text; NULL: there is none.  A disk's
 * name has neither '/' nor ':'. */
static const char *image_in(const char *text)
{
    const char *at = text;

    if (options_names_rbd(text)) {
        return text;
    }
    while (*at && !strchr("/:", *at)) {
        if (*at == '=' && options_names_rbd(at + 1)) {
            return at + 1;
        }
        at++;
    }
    return NULL;
}

bool rbd_source_is(const char *text)
{
    return image_in(text) != NULL;
}

/* --- One text --- */

/* The image's name has backslashes of its own, the disk's has not. */
static void write_word(FILE *f, const char *word)
{
    const char *image = image_in(word);

    for (const char *p = word; *p; p++) {
        bool escaped = p >= image && *p == '\\' && p[1];

        if (*p == ' ' || (*p == '\\' && !escaped)) {
            (void)fputc('\\', f);
        }
        (void)fputc(*p, f);
        if (escaped) {
            (void)fputc(*++p, f);
        }
    }
}

char *rbd_source_join(char **given, unsigned count)
{
    char *text = NULL;
    size_t size;
    FILE *f = open_memstream(&text, &size);

    for (unsigned i = 0; f && i < count; i++) {
        (void)fputs(i > 0 ? " " : "", f);
        write_word(f, given[i]);
    }
    if (!f || fclose(f) != 0) {
        free(text);
        return NULL;
    }
    return text;
}

/* The first word of *text, malloc()ed; *text is behind it.  *last: that was
 * all. */
static char *next_word(const char **text, bool *last)
{
    const char *p = *text;

    while (*p && *p != ' ') {
        p += *p == '\\' && p[1] ? 2 : 1;
    }
    char *word = strndup(*text, (size_t)(p - *text));
    *last = *p == '\0';
    *text = *last ? p : p + 1;
    return word;
}

static void unescape(char *text)
{
    char *to = text;

    for (const char *p = text; *p; p++) {
        p += *p == '\\' && p[1];
        *to++ = *p;
    }
    *to = '\0';
}

/* --- Names --- */

static const char *text_of(const json_t *options, const char *key)
{
    return json_string_value(json_object_get(options, key));
}

static int parse_word(char *word, struct rbd_source_name *n,
                      struct error **errp)
{
    const char *image = image_in(word);

    if (!image) {
        return error_set(errp, EINVAL, "'%s' is no image of Ceph", word);
    }
    int r = options_from_rbd_name(image, &n->options, errp);
    if (r < 0) {
        n->options = NULL;
        return r;
    }
    if (text_of(n->options, "snapshot")) {
        return error_set(errp, EINVAL,
                         "'%s' of image '%s' is a snapshot: name the image, "
                         "and a snapshot of it is made",
                         text_of(n->options, "snapshot"),
                         text_of(n->options, "image"));
    }
    if (image > word) {
        word[image - word - 1] = '\0';
        unescape(word);
        n->disk = strdup(word);
    } else {
        n->disk = strdup(text_of(n->options, "image"));
    }
    return n->disk ? 0 : error_nomem(errp);
}

static int check_unique(const struct rbd_source_name *list, unsigned i,
                        struct error **errp)
{
    for (unsigned k = 0; k < i; k++) {
        if (strcmp(list[k].disk, list[i].disk) == 0) {
            return error_set(errp, EINVAL,
                             "two disks would be '%s': give them names "
                             "(NAME=rbd:POOL/IMAGE)",
                             list[i].disk);
        }
    }
    return 0;
}

int rbd_source_parse(const char *text, struct rbd_source_name **list,
                     struct error **errp)
{
    struct rbd_source_name *all = NULL;
    bool last = false;
    int r = 0;

    for (unsigned i = 0; r == 0 && !last; i++) {
        CLEANUP_FREE char *word = next_word(&text, &last);
        struct rbd_source_name *more = realloc(all, (i + 2) * sizeof(*more));

        if (more) {
            all = more;
            memset(&all[i], 0, 2 * sizeof(*all));
        }
        if (!more || !word) {
            r = error_nomem(errp);
            break;
        }
        r = parse_word(word, &all[i], errp);
        r = r < 0 ? r : check_unique(all, i, errp);
    }
    if (r < 0) {
        rbd_source_free(all);
        all = NULL;
    }
    *list = all;
    return r;
}

void rbd_source_free(struct rbd_source_name *list)
{
    for (unsigned i = 0; list && (list[i].disk || list[i].options); i++) {
        free(list[i].disk);
        json_decref(list[i].options);
    }
    free(list);
}

/* --- Without secrets --- */

/* As it was given, with another name of the image: "DISK=rbd:...". */
static char *plain_word(const char *word)
{
    const char *image = image_in(word);
    CLEANUP_JSON json_t *options = NULL;
    char *whole = NULL;

    if (!image || options_from_rbd_name(image, &options, NULL) < 0) {
        options = NULL;
        return strdup("rbd:");
    }
    CLEANUP_FREE char *name = options_to_rbd_name(options);
    if (!name ||
        asprintf(&whole, "%.*s%s", (int)(image - word), word, name) < 0) {
        return NULL;
    }
    return whole;
}

/* Manifests have texts of 4096 bytes at most. */
#define PLAIN_MAX 4000

#define SHA256_BYTES 32

/* Of one that is too long the beginning, and what tells it from others.  Takes
 * @plain. */
static char *shorten(char *plain)
{
    CLEANUP_FREE char *all = plain;
    unsigned char sum[SHA256_BYTES];
    char hex[2 * SHA256_BYTES + 1];
    char *whole = NULL;
    size_t len = strlen(all);
    size_t keep = PLAIN_MAX;

    if (len <= PLAIN_MAX) {
        return strdup(all);
    }
    if (gnutls_hash_fast(GNUTLS_DIG_SHA256, all, len, sum) < 0) {
        return NULL;
    }
    for (size_t i = 0; i < sizeof(sum); i++) {
        (void)snprintf(hex + 2 * i, 3, "%02x", sum[i]);
    }
    while (((unsigned char)all[keep] & 0xc0) == 0x80) { /* inside a character */
        keep--;
    }
    return asprintf(&whole, "%.*s... (SHA-256 of all: %s)", (int)keep, all,
                    hex) < 0
               ? NULL
               : whole;
}

char *rbd_source_plain(const char *text)
{
    char *plain = NULL;
    size_t size;
    FILE *f = open_memstream(&plain, &size);
    bool last = false;
    bool bad = !f;

    while (!bad && !last) {
        CLEANUP_FREE char *word = next_word(&text, &last);
        CLEANUP_FREE char *without = word ? plain_word(word) : NULL;

        bad = !without;
        if (!bad) {
            write_word(f, without);
            (void)fputs(last ? "" : " ", f);
        }
    }
    if ((f && fclose(f) != 0) || bad) {
        free(plain);
        return NULL;
    }
    return shorten(plain);
}
