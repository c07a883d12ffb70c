/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Opens a source of backups and does what lines of standard input say, each
 * answered by one line of JSON:
 *
 *   begin CHECKPOINT|- [DISK[=SINCE]]...   disks that are not named are
 * skipped, if any is read DISK FILE     copy the frozen disk to a raw file
 *   renew, end keep, end drop
 *   list               checkpoints: name, disk, why they cannot be used
 *   forget CHECKPOINT
 *   freeze, thaw, definition
 *
 * At the end of input, and after SIGINT, SIGTERM or SIGHUP, it closes the
 * source.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "nbdelta/blk.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "nbdelta/tls-creds.h"
#include "source/agent.h"
#include "source/source.h"

#define WORDS_MAX 16
#define PIECE     ((size_t)1 << 20)

static void print_line(json_t *line)
{
    CLEANUP_FREE char *text = json_dumps(line, JSON_COMPACT);

    puts(text ? text : "{}");
    (void)fflush(stdout);
    json_decref(line);
}

static void print_result(int r, const struct error *err)
{
    print_line(r < 0 ? json_pack("{s:s, s:i}", "error", error_message(err),
                                 "errno", -r)
                     : json_pack("{s:b}", "ok", 1));
}

/* --- begin --- */

static int add_range(uint64_t offset, uint64_t bytes, void *opaque)
{
    return json_array_append_new(
        opaque, json_pack("[I, I]", (json_int_t)offset, (json_int_t)bytes));
}

static json_t *describe_disk(struct source *s, const struct source_disk *d)
{
    CLEANUP_ERROR struct error *err = NULL;
    json_t *ranges = json_array();
    int r = d->skip || !s->begun
                ? 0
                : source_each_dirty(s, d, NULL, add_range, ranges, &err);

    return json_pack("{s:s, s:I, s:b, s:s*, s:O*, s:O*, s:b, s:o, s:s*}",
                     "name", d->name, "size", (json_int_t)d->size, "skip",
                     (int)d->skip, "reason", d->reason, "options", d->options,
                     "dirty", d->dirty, "checkpoint", (int)d->checkpoint,
                     "ranges", ranges, "error",
                     r < 0 ? error_message(err) : NULL);
}

static void print_disks(struct source *s)
{
    json_t *list = json_array();

    for (unsigned i = 0; i < s->count; i++) {
        (void)json_array_append_new(list, describe_disk(s, &s->disks[i]));
    }
    print_line(json_pack("{s:s, s:s*, s:o}", "kind", s->ops->name, "version",
                         s->version, "disks", list));
}

/* DISK[=SINCE] */
static int want_disk(struct source *s, char *word)
{
    char *since = strchr(word, '=');

    if (since) {
        *since++ = '\0';
    }
    struct source_disk *d = source_find(s, word);
    if (!d) {
        return -ENOENT;
    }
    d->skip = false;
    d->since = since;
    return 0;
}

static void do_begin(struct source *s, char **words, int count)
{
    CLEANUP_ERROR struct error *err = NULL;
    int r = 0;

    for (unsigned i = 0; i < s->count; i++) {
        s->disks[i].skip = count > 2;
        s->disks[i].since = NULL;
    }
    for (int i = 2; r == 0 && i < count; i++) {
        r = want_disk(s, words[i]);
    }
    if (r == 0) {
        r = source_begin(s, strcmp(words[1], "-") == 0 ? NULL : words[1], &err);
    }
    if (r < 0) {
        print_result(r, err);
    } else {
        print_disks(s);
    }
}

/* --- read --- */

static int copy_all(struct blk *b, const char *path)
{
    CLEANUP_CLOSE int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    CLEANUP_FREE char *buf = malloc(PIECE);
    uint64_t size = blk_size(b);
    int r = fd < 0 || !buf ? -errno : 0;

    for (uint64_t at = 0; r == 0 && at < size; at += PIECE) {
        size_t n = size - at < PIECE ? (size_t)(size - at) : PIECE;

        r = blk_pread(b, buf, n, at, 0);
        if (r == 0 && pwrite(fd, buf, n, (off_t)at) != (ssize_t)n) {
            r = -EIO;
        }
    }
    return r;
}

static void do_read(struct source *s, const char *name, const char *path)
{
    CLEANUP_ERROR struct error *err = NULL;
    const struct source_disk *d = source_find(s, name);
    struct node *n;
    struct blk *b = NULL;
    int r = d && d->options ? graph_open(s->graph, d->options, &n, &err)
                            : -ENOENT;

    if (r == 0) {
        r = blk_new(s->graph, n, PERM_READ, PERM_ALL, "reader", &b, &err);
        r = r < 0 ? r : copy_all(b, path);
        blk_free(b);
        graph_forget(s->graph, n);
    }
    print_result(r, err);
}

/* --- Checkpoints --- */

static int add_checkpoint(const char *name, const struct source_disk *disk,
                          const char *unusable, void *opaque)
{
    return json_array_append_new(
        opaque, json_pack("[s, s, s?]", name, disk->name, unusable));
}

static void do_list(struct source *s)
{
    CLEANUP_ERROR struct error *err = NULL;
    json_t *list = json_array();
    int r = source_each_checkpoint(s, add_checkpoint, list, &err);

    if (r < 0) {
        json_decref(list);
        print_result(r, err);
    } else {
        print_line(list);
    }
}

static void do_definition(struct source *s)
{
    CLEANUP_ERROR struct error *err = NULL;
    CLEANUP_FREE char *xml = NULL;
    int r = source_definition(s, &xml, &err);

    if (r < 0) {
        print_result(r, err);
    } else {
        print_line(json_pack("{s:s?}", "xml", xml));
    }
}

/* --- Lines --- */

static void do_line(struct source *s, char *line)
{
    CLEANUP_ERROR struct error *err = NULL;
    char *words[WORDS_MAX] = {NULL};
    char *save = NULL;
    int count = 0;
    char *w = strtok_r(line, " \n", &save);

    while (w && count < WORDS_MAX - 1) {
        words[count++] = w;
        w = strtok_r(NULL, " \n", &save);
    }
    if (count >= 2 && strcmp(words[0], "begin") == 0) {
        do_begin(s, words, count);
    } else if (count == 3 && strcmp(words[0], "read") == 0) {
        do_read(s, words[1], words[2]);
    } else if (count == 2 && strcmp(words[0], "end") == 0) {
        int r = source_end(s, strcmp(words[1], "keep") == 0, &err);
        print_result(r, err);
    } else if (count == 2 && strcmp(words[0], "forget") == 0) {
        int r = source_forget(s, words[1], &err);
        print_result(r, err);
    } else if (count == 1 && strcmp(words[0], "renew") == 0) {
        int r = source_renew(s, &err);
        print_result(r, err);
    } else if (count == 1 && strcmp(words[0], "list") == 0) {
        do_list(s);
    } else if (count == 1 && (strcmp(words[0], "freeze") == 0 ||
                              strcmp(words[0], "thaw") == 0)) {
        int r = source_freeze(s, *words[0] == 'f', &err);
        print_result(r, err);
    } else if (count == 1 && strcmp(words[0], "definition") == 0) {
        do_definition(s);
    } else {
        print_line(json_pack("{s:s}", "error", "what?"));
    }
}

static void serve_lines(struct source *s, int stop_fd)
{
    struct pollfd p[2] = {{.fd = 0, .events = POLLIN},
                          {.fd = stop_fd, .events = POLLIN}};
    char line[4096];

    while (poll(p, 2, -1) > 0 && !p[1].revents &&
           fgets(line, sizeof(line), stdin)) {
        do_line(s, line);
    }
}

static int take_signals(void)
{
    sigset_t set;

    (void)sigemptyset(&set);
    (void)sigaddset(&set, SIGINT);
    (void)sigaddset(&set, SIGTERM);
    (void)sigaddset(&set, SIGHUP);
    (void)sigprocmask(SIG_BLOCK, &set, NULL);
    return signalfd(-1, &set, SFD_CLOEXEC);
}

/* KEY=VALUE of the options. */
static int set_option(struct source_options *o, char *word)
{
    char *value = strchr(word, '=');

    if (!value) {
        return -EINVAL;
    }
    *value++ = '\0';
    if (strcmp(word, "nbd") == 0) {
        o->nbd = value;
    } else if (strcmp(word, "scratch") == 0) {
        o->scratch = value;
    } else if (strcmp(word, "quota") == 0) {
        o->quota = (uint64_t)atoll(value);
    } else if (strcmp(word, "bitmap") == 0) {
        o->bitmap = value;
    } else if (strcmp(word, "format") == 0) {
        o->format = value;
    } else if (strcmp(word, "connect") == 0) {
        o->connect = value;
    } else if (strcmp(word, "timeout") == 0) {
        o->timeout_s = (unsigned)atoi(value);
    }
    return 0;
}

/* tls=DIR: certificates of a client */
static int use_tls(struct source_options *o, const char *dir,
                   struct error **errp)
{
    CLEANUP_JSON json_t *properties =
        json_pack("{s:s, s:s, s:s, s:s}", "qom-type", "tls-creds-x509", "id",
                  "tls", "dir", dir, "endpoint", "client");

    o->tls_creds = "tls";
    return tls_creds_create(o->graph, properties, errp);
}

int main(int argc, char **argv)
{
    CLEANUP_ERROR struct error *err = NULL;
    struct source_options o = {.graph = NULL};
    const char *tls = NULL;
    struct source *s;

    if (argc < 3) {
        return 2;
    }
    (void)setvbuf(stdin, NULL, _IONBF, 0);
    o.id = argv[2];
    int r = 0;
    for (int i = 3; r == 0 && i < argc; i++) {
        tls = strncmp(argv[i], "tls=", 4) == 0 ? argv[i] + 4 : tls;
        r = set_option(&o, argv[i]);
    }
    r = r < 0 ? r : source_start_guard(argv[1], &o, &o.agent, &err);
    struct graph *g = o.graph = graph_new();
    o.stop_fd = take_signals();
    r = r < 0 || !tls ? r : use_tls(&o, tls, &err);
    r = r < 0 ? r : source_open(argv[1], &o, &s, &err);
    if (r < 0) {
        print_result(r, err);
    } else {
        print_disks(s);
        serve_lines(s, o.stop_fd);
        source_close(s);
    }
    agent_end(o.agent);
    graph_close_all(g);
    graph_free(g);
    return r < 0 ? 1 : 0;
}
