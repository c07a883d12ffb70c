/* SPDX-License-Identifier: BSD-3-Clause */
/* `nbdelta backup-begin` and `nbdelta backup-end`: a point in time of many
 * disks of a running daemon, to be pulled. */
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/commands.h"
#include "client/qmp-client.h"
#include "client/target-names.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/options.h"
#include "nbdelta/size.h"
#include "nbdelta/text.h"

enum {
    OPT_CHECKPOINT = CLI_LONG,
    OPT_DISCARD,
    OPT_DISK,
    OPT_DROP,
    OPT_EXPIRE,
    OPT_FAILED,
    OPT_LISTEN,
    OPT_MAX_DELAY,
    OPT_ON_LIMIT,
    OPT_ONCE,
    OPT_OUTPUT,
    OPT_REQUIRE,
    OPT_SCRATCH,
    OPT_SERVER,
};

static const struct cli_option begin_options[] = {
    {"disk", OPT_DISK, "NODE[,since=CHECKPOINT][,export=NAME]",
     "back up this disk (default: all disks, each as a whole)"},
    {"checkpoint", OPT_CHECKPOINT, "NAME", "begin a checkpoint of this name"},
    {"listen", OPT_LISTEN, "URI",
     "serve the exports there (default: on the server that runs)"},
    {"server", OPT_SERVER, "ID",
     "serve the exports on this NBD server of the daemon"},
    {"scratch", OPT_SCRATCH, "DIR[,quota=SIZE]",
     "keep there what guests overwrite (default: $TMPDIR or /var/tmp)"},
    {"expire", OPT_EXPIRE, "SECONDS",
     "end as failed after so long without clients (a day; 0: never)"},
    {"max-delay", OPT_MAX_DELAY, "MS",
     "limit how long a guest's write waits for room in scratch (2000)"},
    {"on-limit", OPT_ON_LIMIT, "drop-snapshot|break-guest-write",
     "what gives way when there is no room (drop-snapshot)"},
    {"once", OPT_ONCE, NULL, "keep nothing that a client has read"},
    {"discard", OPT_DISCARD, NULL,
     "let clients discard what they do not need any more"},
    {"require-incremental", OPT_REQUIRE, NULL,
     "fail if a disk would be exported as a whole"},
    {"output", OPT_OUTPUT, "human|json",
     "print for people (default), or for programs"},
    {NULL, 0, NULL, NULL},
};

static const struct cli_command begin_command = {
    .name = "backup-begin",
    .usage = "SOCKET [--disk NODE[,since=CHECKPOINT]]... [OPTION...]",
    .about =
        "Freeze disks of the daemon whose QMP monitor is at SOCKET, all at one "
        "instant,\nand export them for clients to pull, with what has changed "
        "since a checkpoint.\n",
    .options = begin_options,
    .operands = "SOCKET",
};

static const struct cli_option end_options[] = {
    {"failed", OPT_FAILED, NULL,
     "say that the backup did not work: forget its checkpoint"},
    {"drop", OPT_DROP, "CHECKPOINT",
     "remove this older checkpoint after success"},
    {NULL, 0, NULL, NULL},
};

static const struct cli_command end_command = {
    .name = "backup-end",
    .usage = "SOCKET ID [--failed] [--drop CHECKPOINT]...",
    .about = "End the backup ID.  Its exports go.  Its checkpoint stays, "
             "unless the backup\nfailed.\n",
    .options = end_options,
    .operands = "SOCKET BACKUP",
};

/* --- Arguments --- */

static bool is_one_of(const char *word, const char *const *words)
{
    while (*words && strcmp(*words, word) != 0) {
        words++;
    }
    return *words;
}

/* @text as an object whose first value may come without its key. */
static int parse_object(const char *text, const char *implied,
                        const char *const *also, json_t **object,
                        struct error **errp)
{
    const char *key;
    json_t *value;
    int r = options_parse(text, implied, object, errp);

    if (r < 0) {
        return r;
    }
    json_object_foreach (*object, key, value) {
        if (!json_is_string(value) ||
            (strcmp(key, implied) != 0 && !is_one_of(key, also))) {
            return error_set(errp, EINVAL, "'%s': there is no '%s'", text, key);
        }
    }
    return json_object_get(*object, implied)
               ? 0
               : error_set(errp, EINVAL, "'%s': '%s' is missing", text,
                           implied);
}

static int add_disk_argument(json_t *args, const char *text,
                             struct error **errp)
{
    static const char *const also[] = {"since", "export", NULL};
    json_t *disks = json_object_get(args, "disks");
    json_t *disk = NULL;
    int r = parse_object(text, "node", also, &disk, errp);

    if (!disks) {
        disks = json_array();
        (void)json_object_set_new(args, "disks", disks);
    }
    (void)json_array_append_new(disks, disk);
    return r;
}

static int set_scratch(json_t *args, const char *text, struct error **errp)
{
    static const char *const also[] = {"quota", NULL};
    json_t *scratch = NULL;
    uint64_t quota;
    int r = parse_object(text, "dir", also, &scratch, errp);
    const char *size = json_string_value(json_object_get(scratch, "quota"));

    (void)json_object_set_new(args, "scratch", scratch);
    if (r < 0 || !size) {
        return r;
    }
    r = size_parse(size, &quota);
    if (r < 0 || quota > INT64_MAX) {
        return error_set(errp, EINVAL,
                         "'%s' is not a size: write bytes, or 512M, 1.5G",
                         size);
    }
    (void)json_object_set_new(scratch, "quota",
                              json_integer((json_int_t)quota));
    return 0;
}

/* An NBD URI without an export, as a socket address. */
static int set_listen(json_t *args, const char *text, struct error **errp)
{
    CLEANUP_JSON json_t *options = NULL;
    int r = options_from_nbd_name(text, &options, errp);

    if (r < 0) {
        return r;
    }
    if (json_object_size(options) != 1) {
        return error_set(errp, EINVAL,
                         "'%s' has more than an address (for TLS, name a "
                         "server that has it with --server)",
                         text);
    }
    return json_object_set(args, "listen", json_object_get(options, "server"));
}

static int set_number(json_t *args, const char *key, const char *text,
                      struct error **errp)
{
    char *end;

    errno = 0;
    long long n = strtoll(text, &end, 10);
    if (errno != 0 || *end || end == text || n < 0 || n > INT32_MAX) {
        return error_set(errp, EINVAL, "'%s' is not a number", text);
    }
    return json_object_set_new(args, key, json_integer(n));
}

static int begin_option(json_t *args, int code, struct error **errp)
{
    switch (code) {
    case OPT_DISK:
        return add_disk_argument(args, optarg, errp);
    case OPT_CHECKPOINT:
        return json_object_set_new(args, "checkpoint", json_string(optarg));
    case OPT_SCRATCH:
        return set_scratch(args, optarg, errp);
    case OPT_LISTEN:
        return set_listen(args, optarg, errp);
    case OPT_SERVER:
        return json_object_set_new(args, "server", json_string(optarg));
    case OPT_EXPIRE:
        return set_number(args, "expire", optarg, errp);
    case OPT_MAX_DELAY:
        return set_number(args, "max-delay-ms", optarg, errp);
    case OPT_ON_LIMIT:
        return json_object_set_new(args, "on-limit", json_string(optarg));
    case OPT_REQUIRE:
        return json_object_set_new(args, "require-incremental", json_true());
    default:
        return json_object_set_new(args, code == OPT_ONCE ? "once" : "discard",
                                   json_true());
    }
}

/* --- The daemon --- */

/* A text of the daemon as it may be printed, for the caller to free. */
static char *printable_member(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));

    return text_printable(text ? text : "");
}

static void print_size(const char *lead, const json_t *object, const char *key)
{
    char size[32];

    (void)size_human((uint64_t)json_integer_value(json_object_get(object, key)),
                     size, sizeof(size));
    printf("%s%s", lead, size);
}

static void print_disk(const json_t *disk)
{
    CLEANUP_FREE char *node = printable_member(disk, "node");
    CLEANUP_FREE char *mode = printable_member(disk, "mode");
    CLEANUP_FREE char *reason = printable_member(disk, "reason");
    CLEANUP_FREE char *uri = printable_member(disk, "uri");
    CLEANUP_FREE char *context = printable_member(disk, "context");

    if (!node || !mode || !reason || !uri || !context) {
        return;
    }
    printf("%s: %s%s%s%s", node, mode, *reason ? " (" : "", reason,
           *reason ? ")" : "");
    print_size(", about ", disk, "estimate");
    print_size(" of ", disk, "size");
    printf("\n  %s\n", uri);
    if (*context) {
        printf("  %s\n", context);
    }
}

static void print_begun(const json_t *begun)
{
    CLEANUP_FREE char *id = printable_member(begun, "id");
    CLEANUP_FREE char *checkpoint = printable_member(begun, "checkpoint");
    bool has_checkpoint = checkpoint && *checkpoint;
    size_t i;
    json_t *disk;

    printf("%s: begun%s%s, writes were held back for %lld us\n", id ? id : "?",
           has_checkpoint ? ", checkpoint " : "",
           has_checkpoint ? checkpoint : "",
           (long long)json_integer_value(json_object_get(begun, "drained-us")));
    json_array_foreach (json_object_get(begun, "disks"), i, disk) {
        print_disk(disk);
    }
}

/* Mind signals from the command on, because what it begins must be undone. */
static int begin_talk(struct qmp_client *c, const char *socket,
                      const char *command, json_t *args, struct error **errp)
{
    int r = qmp_client_open(c, socket, errp);

    if (r == 0) {
        r = qmp_client_mind(c, errp);
    }
    r = r < 0 ? r : target_names_resolve(c, command, args, errp);
    return r < 0 ? r : qmp_client_send(c, command, args, errp);
}

/* The daemon has not answered: what does the user know?  @hint says how to find
 * out. */
static int tell_unanswered(const char *command, int r, const struct error *err,
                           const char *hint)
{
    if (r != -EINTR && r != -ECONNRESET) {
        return cli_error(command, err);
    }
    (void)cli_failed(command, "%s: it is not known whether %s",
                     r == -EINTR ? "interrupted" : error_message(err), hint);
    return CLI_UNKNOWN;
}

/* --- Begin --- */

#define BEGUN "the backup has begun ('nbdelta qmp SOCKET query-backups' tells)"

/* After a signal: the user does not want the backup and does not know its id,
 * so end it.  Returns the exit status. */
static int undo_begin(struct qmp_client *c, const json_t *begun)
{
    CLEANUP_ERROR struct error *err = NULL;
    CLEANUP_JSON json_t *reply = NULL;
    const char *id = json_string_value(json_object_get(begun, "id"));
    CLEANUP_JSON json_t *args = json_pack("{s:s, s:b}", "id", id ? id : "",
                                          "success", 0);
    int r = qmp_client_request(c, "backup-end", args, &reply, &err);

    if (r < 0 || cli_reply_failed("backup-begin", reply) != 0) {
        (void)cli_failed("backup-begin",
                         "%s: backup '%s' may still be there: end it with "
                         "'nbdelta backup-end --failed'",
                         r == -EINTR ? "interrupted" : error_message(err), id);
        return CLI_UNKNOWN;
    }
    (void)cli_failed("backup-begin",
                     "interrupted: backup '%s' was ended as failed", id);
    return CLI_INTERRUPTED;
}

/* The exit status; *reply is what the daemon said when it is 0. */
static int begin_backup(struct qmp_client *c, const char *socket, json_t *args,
                        json_t **reply)
{
    CLEANUP_ERROR struct error *err = NULL;
    bool interrupted = false;
    int r = begin_talk(c, socket, "backup-begin", args, &err);

    while (r == 0 && !*reply) {
        r = qmp_client_reply(c, reply, &err);
        if (r == -EINTR && !interrupted) {
            interrupted = true;
            (void)cli_failed("backup-begin",
                             "interrupted: what has begun is ended again; a "
                             "second signal leaves it as it is");
            r = 0;
        }
    }
    if (r < 0) {
        return tell_unanswered("backup-begin", r, err, BEGUN);
    }
    int status = cli_reply_failed("backup-begin", *reply);
    return status == 0 && interrupted
               ? undo_begin(c, json_object_get(*reply, "return"))
               : status;
}

/* --- Full instead of incremental --- */

static void print_checkpoints(struct qmp_client *c)
{
    CLEANUP_JSON json_t *reply = NULL;
    size_t i;
    json_t *checkpoint;

    if (qmp_client_request(c, "checkpoint-list", NULL, &reply, NULL) < 0) {
        return;
    }
    const json_t *list = json_object_get(reply, "return");
    (void)fflush(stdout);
    fputs("Checkpoints:", stderr);
    json_array_foreach (list, i, checkpoint) {
        CLEANUP_FREE char *name = printable_member(checkpoint, "name");
        fprintf(stderr, "%s %s", i > 0 ? "," : "", name ? name : "?");
    }
    fputs(json_array_size(list) > 0 ? "\n" : " none\n", stderr);
}

/* CLI_PARTLY when a disk is not exported as it was asked for; says which. */
static int check_modes(struct qmp_client *c, const json_t *args,
                       const json_t *begun)
{
    const json_t *asked = json_object_get(args, "disks");
    int status = EXIT_SUCCESS;
    size_t i;
    json_t *disk;

    json_array_foreach (json_object_get(begun, "disks"), i, disk) {
        const char *since = json_string_value(
            json_object_get(json_array_get(asked, i), "since"));
        CLEANUP_FREE char *node = printable_member(disk, "node");
        CLEANUP_FREE char *mode = printable_member(disk, "mode");
        CLEANUP_FREE char *reason = printable_member(disk, "reason");

        if (since && mode && strcmp(mode, "incremental") != 0) {
            (void)cli_failed("backup-begin",
                             "'%s' is exported as a whole, and not since '%s': "
                             "%s",
                             node ? node : "?", since, reason ? reason : "?");
            status = CLI_PARTLY;
        }
    }
    if (status == CLI_PARTLY) {
        print_checkpoints(c);
    }
    return status;
}

/* --- The commands --- */

int cmd_backup_begin(int argc, char **argv)
{
    CLEANUP_ERROR struct error *err = NULL;
    CLEANUP_JSON json_t *args = json_object();
    CLEANUP_JSON json_t *reply = NULL;
    bool json = false;
    int code;

    while ((code = cli_next(&begin_command, argc, argv)) != CLI_END) {
        if (code < 0) {
            return code == CLI_HELP ? 0 : CLI_USAGE;
        }
        if (code == OPT_OUTPUT) {
            if (cli_output_format(&begin_command, optarg, &json) != 0) {
                return CLI_USAGE;
            }
        } else if (begin_option(args, code, &err) < 0) {
            return cli_usage(&begin_command, "%s", error_message(err));
        }
    }
    if (argc - optind != 1) {
        return cli_usage(&begin_command, "one socket is needed");
    }
    struct qmp_client c = QMP_CLIENT_INIT;
    int status = begin_backup(&c, argv[optind], args, &reply);
    if (status == 0) {
        const json_t *begun = json_object_get(reply, "return");

        if (json) {
            cli_print_json(begun);
        } else {
            print_begun(begun);
        }
        status = check_modes(&c, args, begun);
    }
    qmp_client_close(&c);
    return status == 0 || status == CLI_PARTLY
               ? (cli_finish("backup-begin") == 0 ? status : EXIT_FAILURE)
               : status;
}

#define ENDED                                                               \
    "the backup has ended with its checkpoint stored ('nbdelta qmp SOCKET " \
    "query-backups' and 'checkpoint-list' tell)"

/* The daemon goes on with it, whatever becomes of us. */
static int end_backup(const char *socket, json_t *args)
{
    CLEANUP_ERROR struct error *err = NULL;
    CLEANUP_JSON json_t *reply = NULL;
    struct qmp_client c = QMP_CLIENT_INIT;
    int r = begin_talk(&c, socket, "backup-end", args, &err);

    if (r == 0) {
        r = qmp_client_reply(&c, &reply, &err);
    }
    qmp_client_close(&c);
    return r < 0 ? tell_unanswered("backup-end", r, err, ENDED)
                 : cli_reply_failed("backup-end", reply);
}

int cmd_backup_end(int argc, char **argv)
{
    CLEANUP_JSON json_t *drop = json_array();
    bool success = true;
    int code;

    while ((code = cli_next(&end_command, argc, argv)) != CLI_END) {
        if (code < 0) {
            return code == CLI_HELP ? 0 : CLI_USAGE;
        }
        if (code == OPT_FAILED) {
            success = false;
        } else {
            (void)json_array_append_new(drop, json_string(optarg));
        }
    }
    if (argc - optind != 2) {
        return cli_usage(&end_command, "a socket and the ID of a backup are "
                                       "needed");
    }
    if (!success && json_array_size(drop) > 0) {
        return cli_usage(&end_command, "--drop and --failed exclude each "
                                       "other");
    }
    CLEANUP_JSON json_t *args = json_pack("{s:s, s:b, s:O}", "id",
                                          argv[optind + 1], "success",
                                          (int)success, "drop", drop);
    return args ? end_backup(argv[optind], args)
                : cli_usage(&end_command, "the ID is not UTF-8 text");
}
