/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * From the kind of a word to what can stand for it: see kinds.h.
 *
 * What is in images, servers and monitors is asked aside.  The file names that
 * lead there are for the shell, which knows how its user likes them.
 */
#include "complete/kinds.h"

#include <grp.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "cli/format-options.h"
#include "cli/nbd-client.h"
#include "complete/aside.h"
#include "complete/ask.h"
#include "complete/offer.h"
#include "complete/place.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/image.h"
#include "store/name.h"

#define FORMATS "qcow2|raw"

/* --- Files --- */

static void nothing(struct offers *o, const struct place *p)
{
    (void)o;
    (void)p;
}

static void files(struct offers *o, const struct place *p)
{
    (void)p;
    offer_files(o);
}

static void directories(struct offers *o, const struct place *p)
{
    (void)p;
    offer_directories(o);
}

/* The path behind "socket=", which ends a URI.  Most arguments that can be a
 * URI are files: before a letter is typed, schemes would be in the way. */
static void uris(struct offers *o, const struct place *p)
{
    static const char key[] = "?socket=";
    const char *rest = offers_rest(o);
    const char *socket = client_is_uri(rest) ? strstr(rest, key) : NULL;
    bool wanted = p->option || *rest;

    if (socket) {
        struct offers path = *o;
        path.head += (size_t)(socket - rest) + strlen(key);
        offer_files(&path);
        return;
    }
    for (size_t i = 0; wanted && client_uri_schemes[i]; i++) {
        offer(o, client_uri_schemes[i], NULL);
    }
}

/* "nbd:" is on its way to a URI. */
static bool becomes_uri(const char *text)
{
    const char *const *scheme = client_uri_schemes;

    while (*scheme && strncmp(*scheme, text, strlen(text)) != 0) {
        scheme++;
    }
    return *scheme && strchr(text, ':');
}

static void images(struct offers *o, const struct place *p)
{
    const char *rest = offers_rest(o);

    if (!client_is_uri(rest) && !becomes_uri(rest)) {
        files(o, p);
    }
}

/* "DIR@POINT": points once DIR is known, which the shell completes. */
static void points(struct offers *o, const struct place *p)
{
    const char *rest = offers_rest(o);

    if (client_is_uri(rest) || becomes_uri(rest)) {
        return;
    }
    const char *at = strrchr(rest, '@');
    size_t len = at && !strchr(at, '/') ? (size_t)(at - rest) : strlen(rest);
    CLEANUP_FREE char *dir = strndup(rest, len);
    struct ask_store a = {.dir = dir};

    if (dir && at && !strchr(at, '/') && ask_is_store(dir)) {
        struct offers behind = *o;
        behind.head += len + 1;
        aside(&behind, ask_points, &a);
    } else if (dir && ask_is_store(dir)) {
        offer_with(o, rest, "@", "a point of this directory");
        directories(o, p);
    } else {
        directories(o, p);
    }
}

/* Of KEY=VALUE: does the value look like the name of a file, or the key like
 * what has one? */
static bool is_path(const char *word)
{
    static const char *const endings[] = {"file", "filename", "target", "dir",
                                          "path"};
    size_t len = strcspn(word, "=");

    for (size_t i = 0; i < ARRAY_SIZE(endings); i++) {
        size_t n = strlen(endings[i]);

        if (len >= n && strncmp(word + len - n, endings[i], n) == 0) {
            return true;
        }
    }
    return strchr(word + len, '/') != NULL;
}

/* "NAME=" before a disk. */
static void exports(struct offers *o, const struct place *p)
{
    const char *rest = offers_rest(o);
    size_t len = strcspn(rest, "=/:");

    o->head += rest[len] == '=' ? len + 1 : 0;
    uris(o, p);
    images(o, p);
    points(o, p);
}

/* --- Words --- */

static void formats(struct offers *o, const struct place *p)
{
    (void)p;
    offer_words(o, FORMATS);
}

static const char *const *names_of_format(const struct place *p)
{
    const char *name = p->command->name;

    if (strcmp(name, "amend") == 0) {
        const char *format = place_value(p, "format");
        return image_amend_options(format ? format : "qcow2");
    }
    const char *format = place_value(
        p, strcmp(name, "measure") == 0 ? "target-format" : "format");
    return image_create_options(format                         ? format
                                : strcmp(name, "measure") == 0 ? "raw"
                                                               : "qcow2");
}

/* "KEY=VALUE,KEY=VALUE" */
static void format_options(struct offers *o, const struct place *p)
{
    const char *rest = offers_rest(o);
    const char *comma = strrchr(rest, ',');
    const char *const *names = names_of_format(p);

    o->head += comma ? (size_t)(comma - rest) + 1 : 0;
    rest = offers_rest(o);
    size_t len = strcspn(rest, "=");
    for (; names && *names; names++) {
        const struct format_option *f = format_option_find(*names);

        if (rest[len] != '=') {
            offer_with(o, *names, "=", f ? f->help : NULL);
        } else if (strlen(*names) == len && strncmp(*names, rest, len) == 0) {
            o->head += len + 1;
            offer_words(o, f && f->values ? f->values : "");
            if (is_path(rest)) {
                offer_files(o);
            }
            return;
        }
    }
}

/* Those of this machine's own file: others may be far away. */
static void groups(struct offers *o, const struct place *p)
{
    FILE *f = fopen("/etc/group", "re");
    const struct group *g;

    (void)p;
    while (f && (g = fgetgrent(f))) {
        offer(o, g->gr_name, NULL);
    }
    if (f) {
        (void)fclose(f);
    }
}

/* --- Names in images --- */

static void names_in(struct offers *o, const char *image, const char *format,
                     bool bitmaps)
{
    const struct ask_image a = {.path = image, .format = format};

    if (!image) {
        return;
    }
    if (!client_is_uri(image)) {
        aside(o, bitmaps ? ask_bitmaps : ask_snapshots, &a);
    } else if (bitmaps && ask_can_export(image)) {
        aside(o, ask_export_bitmaps, image);
    }
}

/* A word between the verb and the image is none of the image's names. */
static bool is_merging(const struct place *p)
{
    return p->operand_count > 2 && strcmp(p->operands[0], "merge") == 0;
}

static void bitmaps(struct offers *o, const struct place *p)
{
    const char *source = is_merging(p) ? place_value(p, "source-file") : NULL;

    if (source) {
        names_in(o, source, place_value(p, "source-format"), true);
    } else if (!place_given(p, "image-opts")) {
        names_in(o, place_operand(p, "IMAGE"), place_value(p, "format"), true);
    }
}

/* Of another image, if there is one. */
static void merged_bitmaps(struct offers *o, const struct place *p)
{
    const char *source = place_value(p, "source-file");

    if (source) {
        names_in(o, source, place_value(p, "source-format"), true);
    } else {
        bitmaps(o, p);
    }
}

static void snapshots(struct offers *o, const struct place *p)
{
    if (!place_given(p, "image-opts")) {
        names_in(o, place_operand(p, "IMAGE"), place_value(p, "format"), false);
    }
}

/* --- Names in backup directories --- */

static void disks_of(struct offers *o, const char *where)
{
    CLEANUP_FREE char *dir = NULL;
    CLEANUP_FREE char *path = where ? ask_path(where) : NULL;
    struct ask_store a = {0};

    if (path && point_name_is_directory(path, &dir, &a.point)) {
        a.dir = dir;
        aside(o, ask_disks, &a);
    }
}

static void point_disks(struct offers *o, const struct place *p)
{
    disks_of(o, place_operand(p, "DIR[@POINT]"));
}

/* "DISK=TARGET" */
static void targets(struct offers *o, const struct place *p)
{
    const char *rest = offers_rest(o);
    size_t len = strcspn(rest, "=");

    if (rest[len] == '=') {
        o->head += len + 1;
        uris(o, p);
        images(o, p);
    } else {
        point_disks(o, p);
    }
}

/* --- Names in monitors --- */

static void ask(struct offers *o, const struct place *p,
                void (*fn)(struct offers *o, const void *monitor))
{
    struct ask_monitor m = {.socket = place_operand(p, "SOCKET")};

    if (m.socket) {
        aside(o, fn, &m);
    }
}

static void commands(struct offers *o, const struct place *p)
{
    ask(o, p, ask_commands);
}

static void events(struct offers *o, const struct place *p)
{
    ask(o, p, ask_events);
}

static void jobs(struct offers *o, const struct place *p)
{
    ask(o, p, ask_jobs);
}

static void backups(struct offers *o, const struct place *p)
{
    ask(o, p, ask_backups);
}

static void checkpoints(struct offers *o, const struct place *p)
{
    ask(o, p, ask_checkpoints);
}

/* "NODE,since=CHECKPOINT,export=NAME" */
static void nodes(struct offers *o, const struct place *p)
{
    const char *rest = offers_rest(o);
    const char *comma = strrchr(rest, ',');

    if (!comma) {
        ask(o, p, ask_nodes);
        return;
    }
    o->head += (size_t)(comma - rest) + 1;
    if (strncmp(offers_rest(o), "since=", 6) == 0) {
        o->head += 6;
        ask(o, p, ask_checkpoints);
    } else {
        offer_words(o, "since=|export=");
    }
}

/* Behind the socket and the command. */
static void arguments(struct offers *o, const struct place *p)
{
    const char *rest = offers_rest(o);
    struct ask_monitor m = {.socket = p->operands[0],
                            .command = p->operands[1]};

    if (strcmp(m.command, "help") == 0) {
        if (p->operand_count == 2) {
            aside(o, ask_help_topics, &m);
        }
        return;
    }
    m.words = p->operands + 2;
    m.count = p->operand_count - 2;
    aside(o, ask_arguments, &m);
    if (strchr(rest, '=') && is_path(rest)) {
        o->head += strcspn(rest, "=") + 1;
        offer_files(o);
    }
}

/* --- The table --- */

static const struct kind {
    const char *word;
    void (*fn)(struct offers *o, const struct place *p);
} kinds[] = {
    {"ADDR", nothing},
    {"AGE", nothing},
    {"BACKUP", backups},
    {"BITMAP", bitmaps},
    {"CHECKPOINT", checkpoints},
    {"COMMAND", files},
    {"DIR", directories},
    {"DIR[,quota=SIZE]", directories},
    {"DIR[@POINT]", points},
    {"DISK", point_disks},
    {"DISK[=TARGET]", targets},
    {"EVENT", events},
    {"FILE", files},
    {"FORMAT", formats},
    {"GROUP", groups},
    {"IMAGE", images},
    {"JOB", jobs},
    {"KEY=VALUE,...", format_options},
    {"MICROSECONDS", nothing},
    {"MONITOR-ARGUMENT", arguments},
    {"MONITOR-COMMAND", commands},
    {"MODE", nothing},
    {"MS", nothing},
    {"N", nothing},
    {"N/M", nothing},
    {"NAME", nothing},
    {"NAME=IMAGE", exports},
    {"NODE[,since=CHECKPOINT][,export=NAME]", nodes},
    {"OPTIONS", nothing},
    {"PATH", files},
    {"PERCENT", nothing},
    {"PORT", nothing},
    {"RAW", files},
    {"SECONDS", nothing},
    {"SIZE", nothing},
    {"SNAPSHOT", snapshots},
    {"SOCKET", files},
    {"SOURCE", merged_bitmaps},
    {"SPAN", nothing},
    {"URI", uris},
    {"WORD", nothing},
};

static void offer_kind(struct offers *o, const struct place *p,
                       const char *word)
{
    if (word[0] < 'A' || word[0] > 'Z') {
        offer(o, word, NULL);
        return;
    }
    for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
        if (strcmp(kinds[i].word, word) == 0) {
            kinds[i].fn(o, p);
            return;
        }
    }
    offer_files(o);
}

void kinds_offer(struct offers *o, const struct place *p, const char *kind,
                 size_t len)
{
    size_t head = o->head;

    while (len > 0) {
        size_t n = strcspn(kind, "|");
        n = n > len ? len : n;
        CLEANUP_FREE char *word = strndup(kind, n);

        if (word) {
            o->head = head;
            offer_kind(o, p, word);
        }
        n += n < len;
        kind += n;
        len -= n;
    }
    o->head = head;
}
