/* SPDX-License-Identifier: BSD-3-Clause */
/* `nbdelta metrics`: what a monitor answers, for Prometheus. */
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "args.h"
#include "cli/cli.h"
#include "cli/commands.h"
#include "cli/monitor-metrics.h"
#include "cli/prom.h"
#include "client/qmp-client.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "qmp/parse.h"

#define ANSWER_MS 10000 /* most that is waited for the monitor, each time */

/* --- Asking. --- */

static bool is_unknown(const json_t *reply)
{
    const char *class = member_str(json_object_get(reply, "error"), "class");

    return class && strcmp(class, "CommandNotFound") == 0;
}

/* With flat, an image does not have the images below it inside.  QEMU before
 * 5.0 does not know that. */
static int request(struct qmp_client *c, const char *command, json_t **reply,
                   struct error **errp)
{
    CLEANUP_JSON json_t *flat = NULL;
    int r;

    if (strcmp(command, MONITOR_METRICS_NODES) == 0) {
        CLEANUP_JSON json_t *all = json_pack("{s:b}", "query-nodes", 1);

        return qmp_client_request(c, "query-blockstats", all, reply, errp);
    }
    if (strcmp(command, "query-named-block-nodes") == 0) {
        flat = json_pack("{s:b}", "flat", 1);
    }
    r = qmp_client_request(c, command, flat, reply, errp);
    if (r == 0 && flat && !json_object_get(*reply, "return") &&
        !is_unknown(*reply)) {
        json_decref(*reply);
        *reply = NULL;
        r = qmp_client_request(c, command, NULL, reply, errp);
    }
    return r;
}

static int ask(struct qmp_client *c, const char *command,
               struct monitor_answers *a, struct error **errp)
{
    CLEANUP_JSON json_t *reply = NULL;
    int r = request(c, command, &reply, errp);

    if (r < 0) {
        return r;
    }
    (void)json_array_clear(c->events); /* nobody wants them */
    json_t *value = json_object_get(reply, "return");
    if (value) {
        r = json_object_set(a->returns, command, value);
    } else if (!is_unknown(reply)) {
        r = json_object_set_new(a->refused, command, json_true());
    }
    return r < 0 ? error_nomem(errp) : 0;
}

static int ask_all(const char *socket, struct monitor_answers *a,
                   struct error **errp)
{
    struct qmp_client c = QMP_CLIENT_INIT;
    CLEANUP_JSON json_t *addr = json_pack("{s:s, s:s}", "type", "unix", "path",
                                          socket);
    int r;

    a->returns = json_object();
    a->refused = json_object();
    if (!a->returns || !a->refused) {
        return error_nomem(errp);
    }
    if (!addr) {
        return error_set(errp, EINVAL, "'%s' is no name of a socket", socket);
    }
    c.limits = &qmp_limits_known;
    c.limit_ms = ANSWER_MS;
    r = qmp_client_connect(&c, addr, NULL, NULL, ANSWER_MS, NULL, errp);
    for (size_t i = 0; r == 0 && monitor_metrics_queries[i]; i++) {
        r = ask(&c, monitor_metrics_queries[i], a, errp);
    }
    qmp_client_close(&c);
    return r;
}

/* --- Telling. --- */

static int write_all(FILE *f, void *opaque)
{
    return monitor_metrics_write(f, opaque);
}

static int write_out(const char *output, struct monitor_answers *a)
{
    CLEANUP_ERROR struct error *err = NULL;

    if (output) {
        if (prom_to_file(output, write_all, a, &err) == 0) {
            return EXIT_SUCCESS;
        }
        (void)cli_error("metrics", err); /* whatever the folder lacks */
        return EXIT_FAILURE;
    }
    int r = monitor_metrics_write(stdout, a);
    if (r < 0) {
        return cli_failed("metrics", "%s", strerror(-r));
    }
    return cli_finish("metrics");
}

/* A monitor that does not answer is a metric, too. */
static int run(const char *socket, const char *output)
{
    CLEANUP_ERROR struct error *err = NULL;
    struct monitor_answers a = {.monitor = socket};
    int status = EXIT_SUCCESS;

    if (ask_all(socket, &a, &err) < 0) {
        status = cli_error("metrics", err);
        json_decref(a.returns);
        json_decref(a.refused);
        a.returns = NULL;
        a.refused = NULL;
    }
    int written = write_out(output, &a);
    json_decref(a.returns);
    json_decref(a.refused);
    return status == EXIT_SUCCESS ? written : status;
}

static const struct cli_option options[] = {
    {"output", 'o', "FILE", "replace FILE by the metrics (standard output)"},
    {NULL, 0, NULL, NULL},
};

static const struct cli_command command_line = {
    .name = "metrics",
    .usage = "SOCKET [--output FILE]",
    .about = "Print what a QMP monitor tells of disks, bitmaps, jobs and "
             "backups\nin Prometheus' text format.\n",
    .options = options,
    .operands = "SOCKET",
};

int cmd_metrics(int argc, char **argv)
{
    const char *output = NULL;
    int code;

    while ((code = cli_next(&command_line, argc, argv)) != CLI_END) {
        if (code < 0) {
            return code == CLI_HELP ? 0 : CLI_USAGE;
        }
        output = optarg;
    }
    if (argc - optind != 1) {
        return cli_usage(&command_line, "one socket is needed");
    }
    return run(argv[optind], output);
}
