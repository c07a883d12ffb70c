/* SPDX-License-Identifier: BSD-3-Clause */
/* `nbdelta qmp`: one command to a monitor, and the job that it starts. */

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/commands.h"
#include "cli/qmp-wait.h"
#include "client/qmp-client.h"
#include "commands/table.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/options.h"
#include "nbdelta/size.h"

/* --- Arguments. --- */

static json_t *convert_member(json_t *v, const struct qmp_arg *a);

/* The value that a bare string most likely stands for, where no row tells. */
static json_t *guess(const char *text)
{
    char *end;
    long long n;

    if (strcmp(text, "on") == 0 || strcmp(text, "true") == 0) {
        return json_true();
    }
    if (strcmp(text, "off") == 0 || strcmp(text, "false") == 0) {
        return json_false();
    }
    errno = 0;
    n = strtoll(text, &end, 10);
    if (errno == 0 && *end == '\0' && end != text &&
        strchr("-0123456789", *text)) {
        return json_integer(n);
    }
    return json_string(text);
}

/* A string that does not fit stays one: the other side says what it expects. */
static json_t *convert_number(const char *text)
{
    uint64_t n;

    if (size_parse(text, &n) == 0 && n <= INT64_MAX) {
        return json_integer((json_int_t)n);
    }
    if (text[0] == '-' && size_parse(text + 1, &n) == 0 && n <= INT64_MAX) {
        return json_integer(-(json_int_t)n);
    }
    return json_string(text);
}

static json_t *convert_string(const char *text, enum qmp_type type)
{
    switch (type) {
    case QMP_BOOL:
        if (strcmp(text, "on") == 0 || strcmp(text, "yes") == 0 ||
            strcmp(text, "true") == 0) {
            return json_true();
        }
        if (strcmp(text, "off") == 0 || strcmp(text, "no") == 0 ||
            strcmp(text, "false") == 0) {
            return json_false();
        }
        return json_string(text);
    case QMP_INT:
    case QMP_UINT32:
    case QMP_SIZE:
        return convert_number(text);
    case QMP_ENUMS:
    case QMP_STRS:
    case QMP_STR_OR_OBJECT_ARRAY:
        return json_pack("[s]", text);
    case QMP_END:
        return guess(text);
    default:
        return json_string(text);
    }
}

/* A copy of @object with its strings turned into what @spec wants; NULL
 * spec: nothing is known.  NULL: no memory. */
static json_t *convert_object(json_t *object, const struct qmp_arg *spec)
{
    static const struct qmp_arg unknown = QMP_LAST;
    json_t *copy = json_object();
    const char *key;
    json_t *value;

    json_object_foreach (object, key, value) {
        const struct qmp_arg *a = qmp_find_arg(spec, object, key);

        if (json_object_set_new(copy, key,
                                convert_member(value, a ? a : &unknown)) < 0) {
            json_decref(copy);
            return NULL;
        }
    }
    return copy;
}

static json_t *convert_member(json_t *v, const struct qmp_arg *a)
{
    if (json_is_string(v)) {
        return convert_string(json_string_value(v), a->type);
    }
    if (json_is_object(v)) {
        return convert_object(v, a->members);
    }
    return json_incref(v);
}

/* "key=value" words as one list; a comma within a word is only a comma. */
static char *join_words(int argc, char **argv)
{
    size_t len = 1;
    char *text;
    char *out;

    for (int i = 0; i < argc; i++) {
        len += 2 * strlen(argv[i]) + 1;
    }
    text = malloc(len);
    out = text;
    for (int i = 0; text && i < argc; i++) {
        if (i > 0) {
            *out++ = ',';
        }
        for (const char *p = argv[i]; *p; p++) {
            *out++ = *p;
            if (*p == ',') {
                *out++ = ',';
            }
        }
    }
    if (text) {
        *out = '\0';
    }
    return text;
}

static int parse_arguments(const char *command, int argc, char **argv,
                           json_t **args, struct error **errp)
{
    const struct qmp_command *known = qmp_find_command(command);
    CLEANUP_JSON json_t *raw = NULL;
    char *text;
    int r;

    if (argc == 1 && argv[0][0] == '{') {
        return options_parse(argv[0], NULL, args, errp);
    }
    for (int i = 0; i < argc; i++) {
        if (!strchr(argv[i], '=')) {
            return error_set(errp, EINVAL,
                             "'%s' is neither KEY=VALUE nor a JSON object",
                             argv[i]);
        }
    }
    text = join_words(argc, argv);
    if (!text) {
        return error_nomem(errp);
    }
    r = options_parse(text, NULL, &raw, errp);
    free(text);
    if (r < 0) {
        return r;
    }
    *args = convert_object(raw, known ? known->args : NULL);
    return *args ? 0 : error_nomem(errp);
}

/* --- The command. --- */

struct what {
    const char *socket;
    const char *command; /* NULL: none, only wait_job */
    json_t *args;
    const char *wait_job; /* or NULL */
    bool wait;
    bool detach; /* a signal leaves the jobs as they are */
    enum wait_until until;
};

/* Does the command bring a job to its end? */
static bool is_ending(const char *command)
{
    static const char *const verbs[] = {"-complete", "-cancel", "-finalize"};
    size_t len = strlen(command);

    for (size_t i = 0; i < ARRAY_SIZE(verbs); i++) {
        size_t n = strlen(verbs[i]);

        if (len > n && strcmp(command + len - n, verbs[i]) == 0) {
            return true;
        }
    }
    return false;
}

/* The reply that was waited for did not come. */
static int tell_no_reply(const struct what *o, int r, const struct error *err)
{
    if (r != -EINTR && r != -ECONNRESET) {
        return cli_error("qmp", err);
    }
    (void)cli_failed("qmp", "%s: whether '%s' is carried out is not known",
                     r == -EINTR ? "interrupted" : error_message(err),
                     o->command);
    return CLI_UNKNOWN;
}

/* Returns an exit status. */
static int run_command(struct waiter *w, const struct what *o)
{
    CLEANUP_ERROR struct error *err = NULL;
    CLEANUP_JSON json_t *reply = NULL;
    int r = waiter_run(w, o->command, o->args, o->wait, &reply, &err);

    if (r < 0) {
        return tell_no_reply(o, r, err);
    }
    if (cli_reply_failed("qmp", reply) != 0) {
        return EXIT_FAILURE;
    }
    cli_print_json(json_object_get(reply, "return"));
    (void)fflush(stdout);
    if (o->wait && waiter_add_own(w, o->args) == 0) {
        return cli_failed("qmp", "'%s' has started no job to wait for",
                          o->command);
    }
    return EXIT_SUCCESS;
}

static int run_with(struct waiter *w, const struct what *o)
{
    if (o->detach) {
        waiter_detach(w);
    }
    enum wait_until until = o->command && is_ending(o->command) ? WAIT_END
                                                                : o->until;
    int status = o->command ? run_command(w, o) : EXIT_SUCCESS;

    if (status == EXIT_SUCCESS && o->wait_job &&
        waiter_add(w, o->wait_job) < 0) {
        status = cli_failed("qmp", "out of memory");
    }
    return status == EXIT_SUCCESS && (o->wait || o->wait_job)
               ? waiter_wait(w, until)
               : status;
}

static int run_connected(const struct what *o)
{
    CLEANUP_ERROR struct error *err = NULL;
    struct qmp_client c = QMP_CLIENT_INIT;
    struct waiter *w = waiter_new(&c);
    int status = EXIT_FAILURE;
    int r = w ? qmp_client_open(&c, o->socket, &err) : error_nomem(&err);

    if (r == 0) {
        (void)json_array_clear(c.events); /* of others */
        r = qmp_client_mind(&c, &err);
    }
    if (r < 0) {
        (void)cli_error("qmp", err);
    } else {
        status = run_with(w, o);
    }
    waiter_free(w);
    qmp_client_close(&c);
    return status;
}

enum {
    OPT_DETACH = CLI_LONG,
    OPT_WAIT_JOB,
};

static const struct cli_option options[] = {
    {"wait", 'w', "[=ready|end]",
     "wait for the jobs that the command starts, until they are ready or end"},
    {"wait-job", OPT_WAIT_JOB, "ID", "wait for a job that is there already"},
    {"detach-on-signal", OPT_DETACH, NULL,
     "when interrupted, leave the jobs of the command running"},
    {NULL, 0, NULL, NULL},
};

static const struct cli_command command_line = {
    .name = "qmp",
    .usage = "SOCKET COMMAND [KEY=VALUE... | JSON] [--wait[=ready|end]]\n"
             "SOCKET --wait-job ID [--wait[=ready|end]]",
    .about = "Send a command to the QMP monitor of a daemon and print what "
             "it returns.\n"
             "With --wait, print the last event of each job, too, and fail "
             "if a job failed.\nAn interrupt cancels the jobs that the command "
             "has started.\n",
    .options = options,
};

/* 0, or CLI_USAGE. */
static int set_until(struct what *o, const char *text)
{
    o->wait = true;
    if (text && strcmp(text, "end") == 0) {
        o->until = WAIT_END;
    } else if (text && strcmp(text, "ready") != 0) {
        return cli_usage(&command_line,
                         "--wait must be for 'ready' or 'end', "
                         "not '%s'",
                         text);
    }
    return 0;
}

int cmd_qmp(int argc, char **argv)
{
    CLEANUP_ERROR struct error *err = NULL;
    struct what o = {.until = WAIT_READY};
    int code;
    int status;

    while ((code = cli_next(&command_line, argc, argv)) != CLI_END) {
        if (code < 0) {
            return code == CLI_HELP ? 0 : CLI_USAGE;
        }
        if (code == OPT_WAIT_JOB) {
            o.wait_job = optarg;
        } else if (code == OPT_DETACH) {
            o.detach = true;
        } else if (set_until(&o, optarg) != 0) {
            return CLI_USAGE;
        }
    }
    argv += optind;
    argc -= optind;
    if (argc < 1 || (argc < 2 && !o.wait_job)) {
        return cli_usage(&command_line, "a socket and a command are needed");
    }
    o.socket = argv[0];
    o.command = argc > 1 ? argv[1] : NULL;
    o.wait = o.wait && !o.wait_job;
    if (argc > 2 &&
        parse_arguments(argv[1], argc - 2, argv + 2, &o.args, &err) < 0) {
        return cli_error("qmp", err);
    }
    status = run_connected(&o);
    json_decref(o.args);
    return status == EXIT_SUCCESS ? cli_finish("qmp") : status;
}
