/* SPDX-License-Identifier: BSD-3-Clause */

/* `nbdelta qmp`: one command to a monitor, and the job that it starts. */

#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "commands.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/options.h"
#include "nbdelta/size.h"
#include "progress.h"
#include "qmp-client.h"
#include "qmp-dispatch.h"

#define PROGRESS_MS 500

struct client {
    struct qmp_client qmp;

    /* --wait */
    char *job;         /* its id, or NULL */
    json_t *final;     /* BLOCK_JOB_COMPLETED or BLOCK_JOB_CANCELLED */
    json_t *info;      /* of query-jobs, the last */
    const char *where; /* the last BLOCK_JOB_ERROR, in words, or NULL */
    bool concluded;
    _Atomic unsigned permille; /* how much is done */
};

/* --- Arguments. --- */

static json_t *convert_member(json_t *v, const struct qmp_arg *a);

/* What a bare string most likely is, where no table tells. */
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

/* Strings that do not fit stay: the other side says what it expects. */
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
        return error_set(errp, ENOMEM, "out of memory");
    }
    r = options_parse(text, NULL, &raw, errp);
    free(text);
    if (r < 0) {
        return r;
    }
    *args = convert_object(raw, known ? known->args : NULL);
    return *args ? 0 : error_set(errp, ENOMEM, "out of memory");
}

/* --- Waiting for a job. --- */

static const char *event_member(const json_t *event, const char *key)
{
    return json_string_value(
        json_object_get(json_object_get(event, "data"), key));
}

static bool event_is(const json_t *event, const char *name)
{
    const char *e = json_string_value(json_object_get(event, "event"));

    return e && strcmp(e, name) == 0;
}

static bool same(const char *a, const char *b)
{
    return a && b && strcmp(a, b) == 0;
}

/* Commands run one after another, so the last job that was created before
 * our reply is ours. */
static void pick_job(struct client *c, const json_t *args)
{
    static const char *const keys[] = {"job-id", "id", "device"};
    const char *id = json_string_value(json_object_get(args, "job-id"));
    size_t i;
    json_t *event;

    json_array_foreach (c->qmp.events, i, event) {
        if (event_is(event, "JOB_STATUS_CHANGE") &&
            same(event_member(event, "status"), "created")) {
            id = event_member(event, "id");
        }
    }
    for (i = 0; !id && i < sizeof(keys) / sizeof(keys[0]); i++) {
        id = json_string_value(json_object_get(args, keys[i]));
    }
    c->job = id ? strdup(id) : NULL;
}

static void follow(struct client *c, json_t *event)
{
    const char *status = event_member(event, "status");

    if (event_is(event, "JOB_STATUS_CHANGE") &&
        same(event_member(event, "id"), c->job)) {
        c->concluded = c->concluded || same(status, "concluded") ||
                       same(status, "null");
    } else if (event_is(event, "BLOCK_JOB_ERROR") &&
               same(event_member(event, "device"), c->job)) {
        c->where = same(event_member(event, "operation"), "read")
                       ? " (while reading from the source)"
                       : " (while writing to the target)";
    } else if ((event_is(event, "BLOCK_JOB_COMPLETED") ||
                event_is(event, "BLOCK_JOB_CANCELLED")) &&
               same(event_member(event, "device"), c->job)) {
        json_decref(c->final);
        c->final = json_incref(event);
    }
}

static void follow_kept(struct client *c)
{
    size_t i;
    json_t *event;

    json_array_foreach (c->qmp.events, i, event) {
        follow(c, event);
    }
    (void)json_array_clear(c->qmp.events);
}

static json_t *find_job(const json_t *jobs, const char *id)
{
    size_t i;
    json_t *job;

    json_array_foreach (jobs, i, job) {
        if (same(json_string_value(json_object_get(job, "id")), id)) {
            return job;
        }
    }
    return NULL;
}

/* Ask how far the job is: 1, 0 when there is no such job, or an error. */
static int poll_job(struct client *c, struct error **errp)
{
    CLEANUP_JSON json_t *reply = NULL;
    json_t *job;
    double total;
    int r = qmp_client_request(&c->qmp, "query-jobs", NULL, &reply, errp);

    if (r < 0) {
        return r;
    }
    follow_kept(c);
    job = find_job(json_object_get(reply, "return"), c->job);
    total = json_number_value(json_object_get(job, "total-progress"));
    if (total > 0) {
        double now =
            json_number_value(json_object_get(job, "current-progress"));

        atomic_store(&c->permille, (unsigned)(now * 1000 / total));
    }
    json_decref(c->info);
    c->info = json_incref(job);
    return job != NULL;
}

static double job_progress(void *opaque)
{
    struct client *c = opaque;

    return atomic_load(&c->permille) / 1000.0;
}

static int follow_events(struct client *c, bool show, struct error **errp)
{
    int r = 0;

    while (r >= 0 && !c->concluded) {
        json_t *event = NULL;

        r = qmp_client_receive(&c->qmp, show ? PROGRESS_MS : -1, &event, errp);
        if (r > 0) {
            follow(c, event);
            json_decref(event);
        } else if (r == 0) {
            r = poll_job(c, errp);
        }
    }
    return r < 0 ? r : 0;
}

static int wait_job(struct client *c, struct error **errp)
{
    struct progress *p;
    int r = 1;

    follow_kept(c);
    /* It must be there now, or have ended in what we have seen. */
    if (!c->concluded) {
        r = poll_job(c, errp);
    }
    if (r < 0 || c->concluded) {
        return r < 0 ? r : 0;
    }
    if (r == 0) {
        return error_set(errp, ENOENT, "there is no job '%s'", c->job);
    }
    p = progress_start(c->job, job_progress, c);
    r = follow_events(c, p != NULL, errp);
    progress_stop(p);
    return r;
}

/* What tells of the end: the last event or, for jobs that have none, what
 * query-jobs says. */
static int report_job(struct client *c, struct error **errp)
{
    const char *where = c->where;
    const char *why;

    if (!c->final) {
        int r = poll_job(c, errp);
        if (r < 0) {
            return r;
        }
    }
    if (!c->final && !c->info) {
        return cli_failed("qmp", "job '%s' ended without a result", c->job);
    }
    cli_print_json(c->final ? c->final : c->info);
    why = c->final ? event_member(c->final, "error")
                   : json_string_value(json_object_get(c->info, "error"));
    if (c->final && event_is(c->final, "BLOCK_JOB_CANCELLED")) {
        why = "cancelled";
        where = NULL;
    }
    return why ? cli_failed("qmp", "job '%s': %s%s", c->job, why,
                            where ? where : "")
               : 0;
}

/* --- The command. --- */

static int run(struct client *c, const char *path, const char *command,
               json_t *args, bool wait, struct error **errp)
{
    CLEANUP_JSON json_t *reply = NULL;
    int r = qmp_client_open(&c->qmp, path, errp);

    if (r == 0) {
        (void)json_array_clear(c->qmp.events);
        r = qmp_client_request(&c->qmp, command, args, &reply, errp);
    }
    if (r < 0) {
        return r;
    }
    if (qmp_client_failed("qmp", reply) != 0) {
        return EXIT_FAILURE;
    }
    cli_print_json(json_object_get(reply, "return"));
    (void)fflush(stdout);
    if (!wait) {
        return 0;
    }
    pick_job(c, args);
    if (!c->job) {
        return error_set(errp, EINVAL, "'%s' has started no job to wait for",
                         command);
    }
    r = wait_job(c, errp);
    return r < 0 ? r : report_job(c, errp);
}

static const struct cli_option options[] = {
    {"wait", 'w', NULL, "follow the job that the command starts to its end"},
    {NULL, 0, NULL, NULL},
};

static const struct cli_command command_line = {
    .name = "qmp",
    .usage = "SOCKET COMMAND [KEY=VALUE... | JSON] [--wait]",
    .about = "Send a command to the QMP monitor of a daemon and print what "
             "it returns.\n"
             "With --wait, print the last event of the job, too, and fail "
             "if it failed.\n",
    .options = options,
};

int cmd_qmp(int argc, char **argv)
{
    CLEANUP_ERROR struct error *err = NULL;
    CLEANUP_JSON json_t *args = NULL;
    struct client c = {.qmp = {.fd = -1}};
    bool wait = false;
    int code;
    int r = 0;

    while ((code = cli_next(&command_line, argc, argv)) != CLI_END) {
        if (code != 'w') {
            return code == CLI_HELP ? 0 : CLI_USAGE;
        }
        wait = true;
    }
    if (argc - optind < 2) {
        return cli_usage(&command_line, "a socket and a command are needed");
    }
    argv += optind;
    argc -= optind;
    if (argc > 2) {
        r = parse_arguments(argv[1], argc - 2, argv + 2, &args, &err);
    }
    if (r == 0) {
        r = run(&c, argv[0], argv[1], args, wait, &err);
    }
    qmp_client_close(&c.qmp);
    json_decref(c.final);
    json_decref(c.info);
    free(c.job);
    if (r < 0) {
        return cli_error("qmp", err);
    }
    return r == 0 ? cli_finish("qmp") : r;
}
