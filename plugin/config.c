/* SPDX-License-Identifier: BSD-3-Clause */
/* The parameters of `nbdkit nbdelta`: see config.h. */
#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/image.h"
#include "nbdelta/options.h"
#include "nbdelta/text.h"

const char config_help[] =
    "[file=][NAME:]<IMAGE>     The disk image to serve, as export NAME; may\n"
    "                          be repeated.\n"
    "blockdev=<OPTIONS>        Instead: the options of QMP's blockdev-add.\n"
    "format=<FORMAT>           The images' format: qcow2 or raw (default: "
    "look).\n"
    "backing=off               Leave the backing files of the images alone.\n"
    "follow=<WHAT>             Which files images may name: beside (default),\n"
    "                          data (other owners' data files, too), none.\n"
    "allow-path=<PATH>         Let images name files in PATH and below, too;\n"
    "                          may be repeated.\n"
    "cache=<MODE>              writeback (default), writethrough, none,\n"
    "                          directsync or unsafe.\n"
    "direct=on                 Bypass the page cache.\n"
    "discard=ignore            Do not free what clients trim (default: "
    "unmap).\n"
    "bitmap=<NAME>             Have this dirty bitmap collect what changes;\n"
    "                          may be repeated.\n"
    "bitmap-durability=<WHAT>  What bitmaps survive: power (default: a power\n"
    "                          cut) or process (a kill).\n"
    "passphrase=<SECRET>       Unlock encrypted images; -: ask for it, +FILE: "
    "read\n"
    "                          it from a file, -FD: from a descriptor.\n"
    "The export NAME@dirty=BITMAP has data where the bitmap is dirty,\n"
    "NAME@snapshot=SNAP the disk as a snapshot in the image has it.";

/* --- Words --- */

static const char *const cache_words[] = {
    "writeback", "writethrough", "none", "directsync", "unsafe", NULL,
};
static const char *const discard_words[] = {"unmap", "ignore", NULL};
static const char *const follow_words[] = {"beside", "data", "none", NULL};
static const char *const durability_words[] = {"power", "process", NULL};
static const char *const switch_words[] = {"off", "on", NULL};

static bool is_among(const char *value, const char *a, const char *b)
{
    return value && (strcmp(value, a) == 0 || strcmp(value, b) == 0);
}

/* Parameters of other plugins and of QEMU, which people may try. */
static const struct {
    const char *key;
    const char *instead;
} hints[] = {
    {"image", "write file=IMAGE"},
    {"filename", "write file=IMAGE"},
    {"disk", "write file=IMAGE, or file=disk:IMAGE for an export named 'disk'"},
    {"driver", "write format=FORMAT, or all options in blockdev="},
    {"readonly", "write 'nbdkit -r nbdelta ...'"},
    {"read-only", "write 'nbdkit -r nbdelta ...'"},
    {"cache.direct", "write direct=on"},
    {"cache.no-flush", "write cache=unsafe"},
    {"node-name", "write file=NAME:IMAGE"},
    {"export", "write file=NAME:IMAGE"},
    {"dirty", "write bitmap=NAME"},
    {"persistent", "bitmaps of bitmap= always are"},
    {"granularity", "make the bitmap by 'nbdelta bitmap add -g SIZE'"},
    {"snapshot", "ask for the export NAME@snapshot=SNAP"},
    {"key-secret", "write passphrase=+FILE"},
    {"encrypt.key-secret", "write passphrase=+FILE"},
    {"secret", "write passphrase=+FILE"},
};

static int unknown_parameter(const char *key, struct error **errp)
{
    for (size_t i = 0; i < ARRAY_SIZE(hints); i++) {
        if (strcmp(hints[i].key, key) == 0) {
            return error_set(errp, EINVAL, "there is no parameter '%s': %s",
                             key, hints[i].instead);
        }
    }
    return error_set(errp, EINVAL,
                     "unknown parameter '%s': 'nbdkit nbdelta --help' lists "
                     "all; a file name with a '=' in it is written file=NAME",
                     key);
}

/* --- One parameter --- */

static int add_string(struct strings *list, const char *value,
                      struct error **errp)
{
    char **grown = realloc(list->at, (list->count + 1) * sizeof(*grown));

    if (!grown) {
        return error_nomem(errp);
    }
    list->at = grown;
    list->at[list->count] = strdup(value);
    return list->at[list->count++] ? 0 : error_nomem(errp);
}

static int check_choice(const char *key, const char *value,
                        const char *const *words, struct error **errp)
{
    char all[120] = "";
    size_t len = 0;

    for (unsigned i = 0; words[i] && len < sizeof(all); i++) {
        if (strcmp(words[i], value) == 0) {
            return 0;
        }
        len += (size_t)snprintf(all + len, sizeof(all) - len, "%s%s",
                                i == 0 ? "" : ", ", words[i]);
    }
    return error_set(errp, EINVAL, "%s=%s makes no sense: write one of %s", key,
                     value, all);
}

/* @value must be one of @words; NULL: any text will do. */
static int set_text(char **where, const char *key, const char *value,
                    const char *const *words, struct error **errp)
{
    int r = words ? check_choice(key, value, words, errp) : 0;

    if (r < 0) {
        return r;
    }
    if (*where) {
        return error_set(errp, EINVAL, "%s= is given twice", key);
    }
    if (value[0] == '\0') {
        return error_set(errp, EINVAL, "%s= has no value", key);
    }
    *where = strdup(value);
    return *where ? 0 : error_nomem(errp);
}

static int set_switch(int *where, const char *key, const char *value,
                      struct error **errp)
{
    int r = check_choice(key, value, switch_words, errp);

    if (r == 0 && *where >= 0) {
        r = error_set(errp, EINVAL, "%s= is given twice", key);
    }
    if (r == 0) {
        *where = strcmp(value, "on") == 0;
    }
    return r;
}

/* @path from the root on, because nbdkit changes its directory. */
static int absolute(const char *path, char **result, struct error **errp)
{
    CLEANUP_FREE char *dir = path[0] == '/' ? strdup("") : getcwd(NULL, 0);

    if (!dir) {
        return error_set(errp, errno, "the current directory: %s",
                         strerror(errno));
    }
    if (asprintf(result, "%s%s%s", dir, dir[0] ? "/" : "", path) < 0) {
        return error_nomem(errp);
    }
    return 0;
}

static int add_dir(struct config *c, const char *value, struct error **errp)
{
    CLEANUP_FREE char *path = NULL;
    int r = absolute(value, &path, errp);

    return r < 0 ? r : add_string(&c->allowed, path, errp);
}

int config_take(struct config *c, const char *key, const char *value,
                struct error **errp)
{
    if (strcmp(key, "file") == 0) {
        return add_string(&c->files, value, errp);
    }
    if (strcmp(key, "blockdev") == 0) {
        return add_string(&c->blockdevs, value, errp);
    }
    if (strcmp(key, "format") == 0) {
        return set_text(&c->format, key, value, NULL, errp);
    }
    if (strcmp(key, "backing") == 0) {
        return set_switch(&c->backing, key, value, errp);
    }
    if (strcmp(key, "allow-path") == 0) {
        return add_dir(c, value, errp);
    }
    if (strcmp(key, "follow") == 0) {
        return set_text(&c->follow, key, value, follow_words, errp);
    }
    if (strcmp(key, "cache") == 0) {
        return set_text(&c->cache, key, value, cache_words, errp);
    }
    if (strcmp(key, "direct") == 0) {
        return set_switch(&c->direct, key, value, errp);
    }
    if (strcmp(key, "discard") == 0) {
        return set_text(&c->discard, key, value, discard_words, errp);
    }
    if (strcmp(key, "bitmap") == 0) {
        return add_string(&c->bitmaps, value, errp);
    }
    if (strcmp(key, "bitmap-durability") == 0) {
        return set_text(&c->durability, key, value, durability_words, errp);
    }
    return unknown_parameter(key, errp);
}

int config_take_passphrase(struct config *c, char *passphrase,
                           struct error **errp)
{
    if (c->passphrase) {
        explicit_bzero(passphrase, strlen(passphrase));
        free(passphrase);
        return error_set(errp, EINVAL, "passphrase= is given twice");
    }
    c->passphrase = passphrase;
    return 0;
}

/* --- Sources --- */

/* Paths in options are made absolute, as nbdkit changes its directory. */
static int make_absolute(json_t *value, struct error **errp)
{
    static const char *const keys[] = {"filename", "path", "config"};
    const char *key;
    json_t *inner;
    size_t i;
    int r = 0;

    json_array_foreach (value, i, inner) {
        r = r < 0 ? r : make_absolute(inner, errp);
    }
    json_object_foreach (value, key, inner) {
        r = r < 0 ? r : make_absolute(inner, errp);
    }
    for (i = 0; r == 0 && i < ARRAY_SIZE(keys); i++) {
        const char *text = json_string_value(json_object_get(value, keys[i]));
        CLEANUP_FREE char *path = NULL;

        /* What begins like a URI is left alone. */
        if (!text || text[0] == '\0' || text[strcspn(text, ":/")] == ':') {
            continue;
        }
        r = absolute(text, &path, errp);
        if (r == 0 &&
            json_object_set_new(value, keys[i], json_string(path)) < 0) {
            r = error_nomem(errp);
        }
    }
    return r;
}

/* The length of NAME in NAME:IMAGE; 0: there is none. */
static size_t source_name_length(const char *text)
{
    static const char *const prefixes[] = {"json:", "blkdebug:", "nbd:"};
    size_t n = text_id_length(text);

    for (size_t i = 0; i < ARRAY_SIZE(prefixes); i++) {
        if (strncmp(text, prefixes[i], strlen(prefixes[i])) == 0) {
            return 0;
        }
    }
    return text[n] == ':' && strncmp(text + n, "://", 3) != 0 ? n : 0;
}

static int set_if_missing(json_t *o, const char *key, json_t *value,
                          struct error **errp)
{
    if (json_object_get(o, key)) {
        json_decref(value);
        return 0;
    }
    return json_object_set_new(o, key, value) < 0 ? error_nomem(errp) : 0;
}

/* What the other parameters say of an image. */
static int add_parameters(const struct config *c, json_t *o,
                          struct error **errp)
{
    bool direct = c->direct == 1 || is_among(c->cache, "none", "directsync");
    bool no_flush = c->cache && strcmp(c->cache, "unsafe") == 0;
    int r = set_if_missing(
        o, "discard", json_string(c->discard ? c->discard : "unmap"), errp);

    if (r == 0 && (direct || no_flush)) {
        r = set_if_missing(o, "cache",
                           json_pack("{s:b, s:b}", "direct", (int)direct,
                                     "no-flush", (int)no_flush),
                           errp);
    }
    if (r == 0 && c->durability) {
        r = set_if_missing(o, "bitmap-durability", json_string(c->durability),
                           errp);
    }
    return r;
}

/* @o is taken.  @name: @len bytes; 0: what the options say, or a number. */
static int add_source(struct config *c, json_t *o, const char *name, size_t len,
                      struct error **errp)
{
    struct source *s = &c->sources[c->source_count];
    const char *own = json_string_value(json_object_get(o, "node-name"));
    char number[32];

    (void)snprintf(number, sizeof(number), "disk%u", c->source_count);
    s->options = o;
    s->name = len > 0 ? strndup(name, len) : strdup(own ? own : number);
    c->source_count++;
    if (!s->name) {
        return error_nomem(errp);
    }
    for (unsigned i = 0; i + 1 < c->source_count; i++) {
        if (strcmp(c->sources[i].name, s->name) == 0) {
            return error_set(errp, EEXIST,
                             "two exports have the name '%s': give one of them "
                             "another by file=NAME:IMAGE",
                             s->name);
        }
    }
    int r = set_if_missing(o, "node-name", json_string(s->name), errp);
    return r < 0 ? r : make_absolute(o, errp);
}

static int add_file(struct config *c, const char *text, struct error **errp)
{
    size_t len = source_name_length(text);
    json_t *o;
    int r = image_check_format(c->format, errp);

    r = r < 0 ? r
              : options_from_image(text + (len > 0 ? len + 1 : 0), c->format,
                                   &o, errp);
    if (r < 0) {
        return r;
    }
    r = add_source(c, o, text, len, errp);
    c->sources[c->source_count - 1].is_file = true;
    c->sources[c->source_count - 1].no_backing = c->backing == 0;
    return r < 0 ? r : add_parameters(c, o, errp);
}

static int add_blockdev(struct config *c, const char *text, struct error **errp)
{
    json_t *o;
    int r = options_parse(text, "driver", &o, errp);

    if (r < 0) {
        error_prefix(errp, "blockdev=: ");
        return r;
    }
    return add_source(c, o, NULL, 0, errp);
}

/* --- The whole --- */

/* Parameters for images are refused where all disks are given as options. */
static int check_needed(const struct config *c, struct error **errp)
{
    const struct {
        bool given;
        const char *key;
        const char *instead;
    } all[] = {
        {c->format, "format", "driver"},
        {c->backing >= 0, "backing", "backing"},
        {c->cache && strcmp(c->cache, "writethrough") != 0, "cache", "cache"},
        {c->direct >= 0, "direct", "cache.direct"},
        {c->discard, "discard", "discard"},
        {c->durability, "bitmap-durability", "bitmap-durability"},
    };

    for (size_t i = 0; i < ARRAY_SIZE(all) && c->files.count == 0; i++) {
        if (all[i].given) {
            return error_set(errp, EINVAL,
                             "%s= is for images of file=: write '%s' into the "
                             "options of blockdev=",
                             all[i].key, all[i].instead);
        }
    }
    return 0;
}

static int check_cache(const struct config *c, struct error **errp)
{
    if (c->direct == 0 && is_among(c->cache, "none", "directsync")) {
        return error_set(errp, EINVAL,
                         "cache=%s and direct=off contradict each other: leave "
                         "one of them away",
                         c->cache);
    }
    return 0;
}

static int check_bitmaps(const struct config *c, struct error **errp)
{
    for (unsigned i = 0; i < c->bitmaps.count; i++) {
        if (c->bitmaps.at[i][0] == '\0') {
            return error_set(errp, EINVAL, "bitmap= has no value");
        }
        for (unsigned j = 0; j < i; j++) {
            if (strcmp(c->bitmaps.at[i], c->bitmaps.at[j]) == 0) {
                return error_set(errp, EINVAL, "bitmap=%s is given twice",
                                 c->bitmaps.at[i]);
            }
        }
    }
    return 0;
}

int config_complete(struct config *c, struct error **errp)
{
    unsigned count = c->files.count + c->blockdevs.count;
    int r;

    if (count == 0) {
        return error_set(errp, EINVAL, "which image? Write file=IMAGE");
    }
    if ((r = check_needed(c, errp)) < 0 || (r = check_cache(c, errp)) < 0 ||
        (r = check_bitmaps(c, errp)) < 0) {
        return r;
    }
    c->writethrough = is_among(c->cache, "writethrough", "directsync");
    c->sources = calloc(count, sizeof(*c->sources));
    if (!c->sources) {
        return error_nomem(errp);
    }
    for (unsigned i = 0; i < c->files.count && r == 0; i++) {
        r = add_file(c, c->files.at[i], errp);
    }
    for (unsigned i = 0; i < c->blockdevs.count && r == 0; i++) {
        r = add_blockdev(c, c->blockdevs.at[i], errp);
    }
    return r;
}

void config_init(struct config *c)
{
    *c = (struct config){.backing = -1, .direct = -1};
}

static void strings_free(struct strings *list)
{
    for (unsigned i = 0; i < list->count; i++) {
        free(list->at[i]);
    }
    free(list->at);
}

void config_free(struct config *c)
{
    for (unsigned i = 0; i < c->source_count; i++) {
        free(c->sources[i].name);
        json_decref(c->sources[i].options);
    }
    free(c->sources);
    strings_free(&c->allowed);
    strings_free(&c->bitmaps);
    strings_free(&c->files);
    strings_free(&c->blockdevs);
    free(c->format);
    free(c->follow);
    free(c->cache);
    free(c->discard);
    free(c->durability);
    if (c->passphrase) {
        explicit_bzero(c->passphrase, strlen(c->passphrase));
        free(c->passphrase);
    }
    config_init(c);
}
