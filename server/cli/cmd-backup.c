/* SPDX-License-Identifier: BSD-3-Clause */
/* nbdelta backup: the command line of a run (backup-run.h). */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "cli/backup-run.h"
#include "cli/cli.h"
#include "cli/commands.h"
#include "cli/interrupt.h"
#include "cli/keep-options.h"
#include "log/log.h"
#include "nbdelta/blk.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/size.h"
#include "source/agent.h"
#include "source/rbd-names.h"
#include "source/source.h"

#define DISKS_MAX 1000

enum {
    OPT_DISK = CLI_LONG,
    OPT_FULL,
    OPT_DRY_RUN,
    OPT_NO_FALLBACK,
    OPT_NEW_SOURCE,
    OPT_AUDIT,
    OPT_FORGET,
    OPT_RATE,
    OPT_COMPRESS,
    OPT_FREEZE,
    OPT_HOOK,
    OPT_HOOK_TIMEOUT,
    OPT_OUTPUT,
    OPT_PROGRESS,
    OPT_BITMAP,
    OPT_INSTANT,
    OPT_SCRATCH,
    OPT_QUOTA,
    OPT_NBD,
    OPT_CONNECT,
    OPT_TUNNEL,
    OPT_CONNECTIONS,
    OPT_TIMEOUT,
    OPT_TLS_CERTIFICATES,
    OPT_TLS_PSK,
    OPT_TLS_USERNAME,
    OPT_PRUNE,
    OPT_KEEP,
};

static const struct cli_option option_table[] = {
    {"disk", OPT_DISK, "NAME", "back up this disk only; can be repeated (all)"},
    {"full", OPT_FULL, NULL,
     "copy everything, also where an increment would do"},
    {"no-fallback", OPT_NO_FALLBACK, NULL,
     "fail where a disk would be copied as a whole"},
    {"new-source", OPT_NEW_SOURCE, NULL,
     "go on although DIR has points of another source"},
    {"audit", OPT_AUDIT, "PERCENT",
     "compare so much of what has not changed with the point before (0)"},
    {"dry-run", OPT_DRY_RUN, NULL, "tell what would be done"},
    {"forget", OPT_FORGET, NULL,
     "remove the checkpoints of DIR from the source, and do nothing else"},
    {"compress", OPT_COMPRESS, "zstd|deflate|none",
     "compress what is written (none)"},
    {"rate", OPT_RATE, "SIZE",
     "copy at most so many bytes a second (0: no limit)"},
    {"freeze", OPT_FREEZE, "[=SOCKET]",
     "freeze the guest's file systems for the instant, by its agent"},
    {"hook", OPT_HOOK, "COMMAND",
     "run it with 'before', 'frozen', and 'after' or 'failed'"},
    {"hook-timeout", OPT_HOOK_TIMEOUT, "SECONDS",
     "end a hook that runs for longer (3600)"},
    {"prune", OPT_PRUNE, NULL,
     "then remove points that none of these rules keeps"},
    KEEP_OPTION_ROWS(OPT_KEEP),
    {"output", OPT_OUTPUT, "human|json", "print what was done as JSON (human)"},
    {"progress", OPT_PROGRESS, "json", "print a JSON line a second on stderr"},
    {"format", 'f', "FORMAT", "format of SOURCE, if it is an image"},
    {"bitmap", OPT_BITMAP, "BITMAP",
     "bitmap of SOURCE, if it is an NBD URI, that tells what has changed"},
    {"instant", OPT_INSTANT, "WORD",
     "SOURCE, if it is an NBD URI, has the same bytes while this is the same"},
    {"scratch", OPT_SCRATCH, "DIR",
     "directory at the source for what guests overwrite meanwhile"},
    {"quota", OPT_QUOTA, "SIZE",
     "most that each disk may take there (no limit)"},
    {"nbd", OPT_NBD, "URI", "use this NBD server, which the source runs"},
    {"connect", OPT_CONNECT, "URI", "connection URI of libvirt"},
    {"tunnel", OPT_TUNNEL, "ssh",
     "read the disks of a domain at another host by way of ssh"},
    {"connections", OPT_CONNECTIONS, "N", "NBD connections for each disk (4)"},
    {"timeout", OPT_TIMEOUT, "SECONDS", "give up when nobody answers (60)"},
    {"tls-certificates", OPT_TLS_CERTIFICATES, "DIR",
     "use TLS for qmp:// and what it exports, with the keys in DIR"},
    {"tls-psk", OPT_TLS_PSK, "FILE",
     "the same with a user's key in FILE (keys.psk)"},
    {"tls-username", OPT_TLS_USERNAME, "NAME", "the user of --tls-psk (qemu)"},
    {NULL, 0, NULL, NULL},
};

static const struct cli_command command = {
    .name = "backup",
    .usage = "[OPTION...] SOURCE... DIR",
    .about =
        "Make a point in the backup directory DIR: the first time everything,\n"
        "then what has changed since the last point.  SOURCE is a domain of\n"
        "libvirt (libvirt:NAME), a QMP socket of nbdelta or of QEMU,\n"
        "qmp://HOST:PORT, an NBD URI, an image that nobody uses, or one or\n"
        "more images of Ceph ([NAME=]rbd:POOL/IMAGE), in use or not.\n",
    .options = option_table,
    .operands = "IMAGE|URI|libvirt:|qmp://|rbd: DIR|rbd:...",
};

static int take_compression(const char *text, struct backup_options *o)
{
    static const struct {
        const char *word;
        const char *type; /* as qcow2 has it */
    } words[] = {{"zstd", "zstd"}, {"deflate", "zlib"}, {"none", NULL}};

    for (size_t i = 0; i < ARRAY_SIZE(words); i++) {
        if (strcmp(words[i].word, text) == 0) {
            o->compression = words[i].type;
            return 0;
        }
    }
    return cli_usage(&command, "--compress is zstd, deflate or none, not '%s'",
                     text);
}

static int take_number(const char *text, const char *what, unsigned max,
                       unsigned *number)
{
    char *end;
    unsigned long n = strtoul(text, &end, 10);

    if (*text < '0' || *text > '9' || *end || n == 0 || n > max) {
        return cli_usage(&command, "--%s is a number from 1 to %u, not '%s'",
                         what, max, text);
    }
    *number = (unsigned)n;
    return 0;
}

/* Digits, and a point in between: neither signs nor words. */
static int take_percent(const char *text, double *percent)
{
    char *end;
    double n = strtod(text, &end);

    if (text[strspn(text, "0123456789.")] || *text == '\0' || *end || n > 100) {
        return cli_usage(&command,
                         "--audit is a number from 0 to 100, not '%s'", text);
    }
    *percent = n;
    return 0;
}

static int take_bytes(const char *text, const char *what, uint64_t *bytes)
{
    return size_parse(text, bytes) == 0
               ? 0
               : cli_usage(&command, "--%s is a size, not '%s'", what, text);
}

struct request {
    struct backup_options o;
    const char *disks[DISKS_MAX];
    const char *agent; /* its socket, or NULL */
    char *text;        /* of images of Ceph, or NULL */
    char *name;        /* the same without secrets */
    bool forget;
    bool json;
};

static int take_rule(struct request *q, int rule)
{
    CLEANUP_ERROR struct error *err = NULL;

    return keep_option_take(&q->o.keep, rule, optarg, &err) < 0
               ? cli_usage(&command, "%s", error_message(err))
               : 0;
}

/* Options that say how to get at the source. */
static int take_source_option(struct source_options *how, int code)
{
    switch (code) {
    case OPT_QUOTA:
        return take_bytes(optarg, "quota", &how->quota);
    case OPT_CONNECTIONS:
        return take_number(optarg, "connections", 16, &how->connections);
    case OPT_TIMEOUT:
        return take_number(optarg, "timeout", 86400, &how->timeout_s);
    case 'f':
        how->format = optarg;
        return 0;
    case OPT_BITMAP:
        how->bitmap = optarg;
        return 0;
    case OPT_INSTANT:
        how->instant = optarg;
        return 0;
    case OPT_SCRATCH:
        how->scratch = optarg;
        return 0;
    case OPT_TUNNEL:
        how->tunnel = true;
        return strcmp(optarg, "ssh") == 0
                   ? 0
                   : cli_usage(&command, "--tunnel is ssh, not '%s'", optarg);
    case OPT_NBD:
        how->nbd = optarg;
        return 0;
    default:
        how->connect = optarg;
        return 0;
    }
}

static int take_option(struct request *q, int code)
{
    if (keep_option_is(code - OPT_KEEP)) {
        return take_rule(q, code - OPT_KEEP);
    }
    switch (code) {
    case OPT_PRUNE:
        q->o.prune = true;
        return 0;
    case OPT_DISK:
        if (q->o.disk_count == DISKS_MAX) {
            return cli_usage(&command, "more than %d disks", DISKS_MAX);
        }
        q->disks[q->o.disk_count++] = optarg;
        return 0;
    case OPT_FULL:
        q->o.full = true;
        return 0;
    case OPT_NO_FALLBACK:
        q->o.no_fallback = true;
        return 0;
    case OPT_NEW_SOURCE:
        q->o.new_source = true;
        return 0;
    case OPT_AUDIT:
        return take_percent(optarg, &q->o.audit);
    case OPT_DRY_RUN:
        q->o.dry_run = true;
        return 0;
    case OPT_FORGET:
        q->forget = true;
        return 0;
    case OPT_COMPRESS:
        return take_compression(optarg, &q->o);
    case OPT_RATE:
        return take_bytes(optarg, "rate", &q->o.rate);
    case OPT_FREEZE:
        q->o.freeze = true;
        q->agent = optarg;
        return 0;
    case OPT_HOOK:
        q->o.hook = optarg;
        return 0;
    case OPT_HOOK_TIMEOUT:
        return take_number(optarg, "hook-timeout", 86400, &q->o.hook_timeout_s);
    case OPT_OUTPUT:
        return cli_output_format(&command, optarg, &q->json);
    case OPT_PROGRESS:
        q->o.progress_json = true;
        return strcmp(optarg, "json") == 0
                   ? 0
                   : cli_usage(&command, "--progress is json, not '%s'",
                               optarg);
    case OPT_TLS_CERTIFICATES:
        q->o.tls_certificates = optarg;
        return 0;
    case OPT_TLS_PSK:
        q->o.tls_psk = optarg;
        return 0;
    case OPT_TLS_USERNAME:
        q->o.tls_username = optarg;
        return 0;
    default:
        return take_source_option(&q->o.how, code);
    }
}

/* Options that need each other, or exclude each other. */
static int check_together(const struct backup_options *o)
{
    const char *why = o->tls_certificates && o->tls_psk
                          ? "--tls-certificates goes without --tls-psk"
                      : o->tls_username && !o->tls_psk
                          ? "--tls-username is for --tls-psk"
                      : o->prune && !rules_any(&o->keep)
                          ? "--prune: which points are to be kept?"
                      : !o->prune && rules_any(&o->keep)
                          ? "--keep-... is for --prune"
                          : NULL;

    return why ? cli_usage(&command, "%s", why) : 0;
}

/* One source; or several images of Ceph, which become the text of one. */
static int take_sources(struct request *q, char **given, int count)
{
    int ceph = 0;

    while (ceph < count && rbd_source_is(given[ceph])) {
        ceph++;
    }
    if (ceph == 0 && count == 1) {
        q->o.source = q->o.source_name = given[0];
        return 0;
    }
    if (ceph < count) {
        return cli_usage(&command,
                         "there can be several sources only where all are "
                         "images of Ceph, and '%s' is none",
                         given[ceph]);
    }
    if (count > DISKS_MAX) {
        return cli_usage(&command,
                         "a directory has %d disks at most, and these are %d",
                         DISKS_MAX, count);
    }
    q->o.source = q->text = rbd_source_join(given, (unsigned)count);
    q->o.source_name = q->name = q->text ? rbd_source_plain(q->text) : NULL;
    return q->name ? 0 : cli_failed(command.name, "no memory");
}

/* CLI_END: go on; else the exit status. */
static int take_command_line(struct request *q, int argc, char **argv)
{
    int code;

    while ((code = cli_next(&command, argc, argv)) != CLI_END) {
        int status = code == CLI_HELP  ? cli_finish(command.name)
                     : code == CLI_BAD ? CLI_USAGE
                                       : take_option(q, code);

        if (code < 0 || status != 0) {
            return status;
        }
    }
    if (argc - optind < 2) {
        return cli_usage(&command, "a source and a directory are needed");
    }
    if ((code = check_together(&q->o)) != 0 ||
        (code = take_sources(q, argv + optind, argc - optind - 1)) != 0) {
        return code;
    }
    q->o.directory = argv[argc - 1];
    q->o.disks = q->disks;
    if (q->o.hook_timeout_s == 0) {
        q->o.hook_timeout_s = 3600;
    }
    return CLI_END;
}

/* --- What was done --- */

static void print_disk(const json_t *d)
{
    char written[32];
    const char *reason = json_string_value(json_object_get(d, "reason"));
    const char *parent = json_string_value(json_object_get(d, "parent"));
    json_int_t n = json_integer_value(json_object_get(d, "written"));

    printf("  %-12s %s", json_string_value(json_object_get(d, "name")),
           json_string_value(json_object_get(d, "kind")));
    if (parent) {
        printf(" over %s", parent);
    }
    if (reason) {
        printf(" (%s)", reason);
    }
    if (n > 0) {
        printf(", %s", size_human((uint64_t)n, written, sizeof(written)));
    }
    putchar('\n');
}

/* Quiet when it has worked, for cron; on a terminal, and of a dry run, a
 * line for each disk. */
static void print_report(const struct request *q, const json_t *report)
{
    const json_t *d;
    size_t i;

    if (q->json) {
        cli_print_json(report);
    } else if (q->o.dry_run || isatty(STDOUT_FILENO)) {
        const char *point = json_string_value(json_object_get(report, "point"));

        printf("%s\n", point ? point : "a point would have:");
        json_array_foreach (json_object_get(report, "disks"), i, d) {
            print_disk(d);
        }
    }
}

static void tell_fallback(const json_t *report)
{
    const json_t *d;
    size_t i;

    json_array_foreach (json_object_get(report, "disks"), i, d) {
        const char *reason = json_string_value(json_object_get(d, "reason"));
        const char *kind = json_string_value(json_object_get(d, "kind"));

        if (strcmp(kind, "full") == 0 && strcmp(reason, "asked") != 0 &&
            strcmp(reason, "new-disk") != 0) {
            (void)cli_failed(
                command.name, "disk '%s' was copied as a whole: %s",
                json_string_value(json_object_get(d, "name")), reason);
        }
    }
}

/* The guard of the guest is started before there are threads. */
static int run(struct request *q, json_t **report, struct error **errp)
{
    int r = !q->o.freeze || q->o.dry_run || q->forget ? 0
            : q->agent ? agent_start(q->agent, &q->o.how.agent, errp)
                       : source_start_guard(q->o.source, &q->o.how,
                                            &q->o.how.agent, errp);

    if (r < 0 || (r = interrupt_start(&q->o.how.stop_fd, errp)) < 0) {
        agent_end(q->o.how.agent);
        return EXIT_FAILURE;
    }
    /* What is read here, and not by copiers, ends with the first signal, too.
     */
    blk_unwanted_when(interrupt_flag());
    int status = q->forget ? backup_forget(&q->o, errp)
                           : backup_run(&q->o, report, errp);
    blk_unwanted_when(NULL);
    interrupt_end();
    agent_end(q->o.how.agent);
    return status;
}

int cmd_backup(int argc, char **argv)
{
    CLEANUP_ERROR struct error *err = NULL;
    CLEANUP_JSON json_t *report = NULL;
    static struct request q;
    int status = take_command_line(&q, argc, argv);

    if (status != CLI_END) {
        return status;
    }
    (void)umask(S_IRWXG | S_IRWXO); /* backups hold what the guests hold */
    log_init(cli_program());
    q.o.show_progress = !q.o.progress_json;
    status = run(&q, &report, &err);
    if (report) {
        print_report(&q, report);
        if (status == CLI_PARTLY && !q.o.dry_run) {
            tell_fallback(report);
        }
    } else if (status != EXIT_SUCCESS) {
        (void)cli_error(command.name, err);
    }
    free(q.text);
    free(q.name);
    return cli_finish(command.name) != 0 ? EXIT_FAILURE : status;
}
