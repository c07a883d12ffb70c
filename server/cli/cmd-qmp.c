/* SPDX-License-Identifier: BSD-3-Clause */
/* `nbdelta qmp`: one command to a monitor, and the job that it starts. */

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/commands.h"
#include "cli/qmp-args.h"
#include "cli/qmp-help.h"
#include "cli/qmp-wait.h"
#include "client/qmp-client.h"
#include "client/schema.h"
#include "client/target-names.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "qmp/parse.h"

/* --- The command. --- */

struct what {
    const char *socket;
    const char *command; /* NULL: none, only wait_job */
    json_t *args;
    const char *wait_job; /* or NULL */
    bool wait;
    bool quiet;
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

/* The daemon closes the connection when all images are closed, as QEMU does.
 * Until then another one could not open them. */
static int wait_for_end(struct qmp_client *c)
{
    CLEANUP_ERROR struct error *err = NULL;
    json_t *message = NULL;
    int r;

    while ((r = qmp_client_receive(c, -1, &message, &err)) > 0) {
        json_decref(message);
    }
    if (r != -EINTR) {
        return EXIT_SUCCESS;
    }
    (void)cli_failed("qmp", "interrupted: the daemon may be ending still");
    return CLI_UNKNOWN;
}

/* A schema that takes longer is not worth the waiting. */
#define HINT_MS 3000

/* Tell what was misspelt, if that is why the command was refused.  Monitors
 * tell a missing argument first, which can be the one that was misspelt. */
static void hint(struct qmp_client *c, const struct what *o,
                 const json_t *reply)
{
    const json_t *e = json_object_get(reply, "error");
    const char *desc = json_string_value(json_object_get(e, "desc"));
    const char *class = json_string_value(json_object_get(e, "class"));
    struct schema s = SCHEMA_INIT;
    const char *unknown = NULL;
    struct nearest near;

    if ((!class || strcmp(class, "CommandNotFound") != 0) &&
        (!desc || strncmp(desc, "Parameter '", 11) != 0)) {
        return;
    }
    c->limit_ms = HINT_MS;
    if (schema_ask(&s, c, NULL) == 0 &&
        qmp_help_misspelt(&s, o->command, o->args, &unknown, &near)) {
        const char *what = unknown ? unknown : o->command;
        const char *kind = unknown ? "argument" : "command";

        if (near.best[0]) {
            (void)cli_failed("qmp", "there is no %s '%s'; is '%s' meant?", kind,
                             what, near.best);
        } else {
            (void)cli_failed("qmp",
                             "there is no %s '%s' ('help%s%s' tells which "
                             "there are)",
                             kind, what, unknown ? " " : "",
                             unknown ? o->command : "");
        }
    }
    schema_free(&s);
}

/* Returns an exit status. */
static int run_command(struct qmp_client *c, struct waiter *w,
                       const struct what *o)
{
    CLEANUP_ERROR struct error *err = NULL;
    CLEANUP_JSON json_t *reply = NULL;
    int r = target_names_resolve(c, o->command, o->args, &err);

    if (r < 0) {
        return cli_error("qmp", err);
    }
    r = waiter_run(w, o->command, o->args, o->wait, &reply, &err);
    if (r < 0) {
        return tell_no_reply(o, r, err);
    }
    if (cli_reply_failed("qmp", reply) != 0) {
        hint(c, o, reply);
        return EXIT_FAILURE;
    }
    if (!o->quiet) {
        cli_print_json(json_object_get(reply, "return"));
        (void)fflush(stdout);
    }
    if (strcmp(o->command, "quit") == 0) {
        return wait_for_end(c);
    }
    if (o->wait && waiter_add_own(w, o->args) == 0) {
        return cli_failed("qmp", "'%s' has started no job to wait for",
                          o->command);
    }
    return EXIT_SUCCESS;
}

static int run_with(struct qmp_client *c, struct waiter *w,
                    const struct what *o)
{
    if (o->detach) {
        waiter_detach(w);
    }
    if (o->quiet) {
        waiter_hush(w);
    }
    enum wait_until until = o->command && is_ending(o->command) ? WAIT_END
                                                                : o->until;
    int status = o->command ? run_command(c, w, o) : EXIT_SUCCESS;

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
    int r = w ? qmp_client_open(&c, o->socket, &err) : error_nomem(&err);

    if (r == 0) {
        (void)json_array_clear(c.events); /* of others */
        r = qmp_client_mind(&c, &err);
    }
    int status = r < 0 ? cli_error("qmp", err) : run_with(&c, w, o);
    waiter_free(w);
    qmp_client_close(&c);
    return status;
}

/* --- Help. --- */

static int print_help(const struct schema *s, const char *name)
{
    struct nearest near = {.word = name};
    int r = name ? qmp_help_print(s, name, stdout, &near)
                 : qmp_help_list(s, stdout);

    if (r == -ENOENT) {
        return cli_failed("qmp", "there is no command or event '%s'%s%s%s",
                          name, near.best[0] ? "; is '" : "", near.best,
                          near.best[0] ? "' meant?" : "");
    }
    return r < 0 ? cli_failed("qmp", "out of memory") : cli_finish("qmp");
}

/* @name: of a command or an event; NULL: all of them.  A monitor need not be
 * one of ours, so its answers have limits. */
static int run_help(const char *socket, const char *name)
{
    CLEANUP_ERROR struct error *err = NULL;
    struct qmp_client c = QMP_CLIENT_INIT;
    struct schema s = SCHEMA_INIT;
    int status;

    c.limits = &qmp_limits_known;
    int r = qmp_client_open(&c, socket, &err);
    r = r < 0 ? r : schema_ask(&s, &c, &err);
    status = r < 0 ? cli_error("qmp", err) : print_help(&s, name);
    schema_free(&s);
    qmp_client_close(&c);
    return status;
}

/* --- The command line. --- */

enum {
    OPT_DETACH = CLI_LONG,
    OPT_WAIT_JOB,
};

static const struct cli_option options[] = {
    {"wait", 'w', "[=ready|end]",
     "wait for the jobs that the command starts, until they are ready or end"},
    {"wait-job", OPT_WAIT_JOB, "JOB", "wait for a job that is there already"},
    {"detach-on-signal", OPT_DETACH, NULL,
     "when interrupted, leave the jobs of the command running"},
    {"quiet", 'q', NULL, "print only errors"},
    {NULL, 0, NULL, NULL},
};

static const struct cli_command command_line = {
    .name = "qmp",
    .usage = "SOCKET COMMAND [KEY=VALUE... | JSON | -] [--wait[=ready|end]]\n"
             "SOCKET --wait-job JOB [--wait[=ready|end]]\n"
             "SOCKET help [COMMAND | EVENT]",
    .about = "Send a command to the QMP monitor of a daemon and print what "
             "it returns.\n"
             "-: its arguments are a JSON object on standard input.\n"
             "help: the commands and events of this monitor, or what one takes "
             "and returns.\n"
             "With --wait, print the last event of each job, too, and fail "
             "if a job failed.\nAn interrupt cancels the jobs that the command "
             "has started.\n",
    .options = options,
    .operands = "SOCKET MONITOR-COMMAND MONITOR-ARGUMENT...",
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
        } else if (code == 'q') {
            o.quiet = true;
        } else if (set_until(&o, optarg) != 0) {
            return CLI_USAGE;
        }
    }
    argv += optind;
    argc -= optind;
    if (argc < 1 || (argc < 2 && !o.wait_job)) {
        return cli_usage(&command_line, "a socket and a command are needed");
    }
    if (argc > 1 && strcmp(argv[1], "help") == 0) {
        return argc > 3 || o.wait || o.wait_job || o.quiet
                   ? cli_usage(&command_line, "help is of one command, and "
                                              "has no options")
                   : run_help(argv[0], argc > 2 ? argv[2] : NULL);
    }
    o.socket = argv[0];
    o.command = argc > 1 ? argv[1] : NULL;
    o.wait = o.wait && !o.wait_job;
    if (argc > 2 &&
        qmp_args_parse(argv[1], argc - 2, argv + 2, &o.args, &err) < 0) {
        json_decref(o.args);
        return cli_error("qmp", err);
    }
    status = run_connected(&o);
    json_decref(o.args);
    return status == EXIT_SUCCESS ? cli_finish("qmp") : status;
}
