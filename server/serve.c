/* SPDX-License-Identifier: BSD-3-Clause */
/* nbdelta serve: from the command line to a running daemon, and its end. */
#include <ctype.h>
#include <errno.h>
#include <getopt.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "cli.h"
#include "commands.h"
#include "daemon.h"
#include "export.h"
#include "listen.h"
#include "monitor.h"
#include "nbdelta/blk.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "nbdelta/job.h"
#include "nbdelta/options.h"
#include "pidfile.h"

#define DEFAULT_PORT "10809"

enum { OPT_QMP = CLI_LONG, OPT_PIDFILE, OPT_ALLOW_PATH };

static const struct cli_option serve_options[] = {
    {"unix", 'U', "SOCKET", "listen on a Unix socket"},
    {"address", 'i', "ADDR", "listen on this address (default localhost)"},
    {"port", 'p', "PORT", "listen on this TCP port (default " DEFAULT_PORT ")"},
    {"read-only", 'r', NULL, "clients cannot write"},
    {"format", 'f', "FORMAT", "the images' format (default: look)"},
    {"qmp", OPT_QMP, "SOCKET", "make a QMP monitor on a Unix socket"},
    {"pidfile", OPT_PIDFILE, "FILE", "write the process id when ready"},
    {"allow-path", OPT_ALLOW_PATH, "DIR",
     "images may name backing files below DIR, too"},
    {NULL, 0, NULL, NULL},
};

static const struct cli_command command = {
    .name = "serve",
    .usage = "[-U SOCKET | -i ADDR -p PORT] [-r] [-f FORMAT] [--qmp SOCKET] "
             "[--pidfile FILE]\n"
             "[--allow-path DIR]... [NAME=]IMAGE...",
    .about = "Serve disk images to NBD clients until SIGTERM, SIGINT or QMP's "
             "quit.\nEach is exported under its NAME (disk0, disk1, ... "
             "unless given), the first\nalso as the default export.  An image "
             "is a file name, or options:\njson:{...} or "
             "driver=...,key=value,...\n",
    .options = serve_options,
};

struct serve {
    /* The command line. */
    const char *socket;
    const char *address;
    const char *port;
    bool read_only;
    const char *format;
    const char *qmp;
    struct pidfile pidfile;
    char **images;
    int image_count;

    struct daemon daemon;
    struct server *server;
    int signals; /* signalfd */
};

/* --- The command line. --- */

/* The length of NAME in NAME=IMAGE; 0: there is none. */
static size_t name_length(const char *text)
{
    size_t n = 0;

    if (strncmp(text, "driver=", 7) == 0 || strncmp(text, "json:", 5) == 0 ||
        !isalpha((unsigned char)text[0])) {
        return 0;
    }
    while (isalnum((unsigned char)text[n]) ||
           (text[n] && strchr("_.-", text[n]))) {
        n++;
    }
    return text[n] == '=' ? n : 0;
}

static int check_port(const char *text)
{
    char *end;
    long n = strtol(text, &end, 10);

    if (!isdigit((unsigned char)text[0]) || *end || n < 1 || n > 65535) {
        return cli_usage(&command, "'%s' is not a port (1 to 65535)", text);
    }
    return 0;
}

static int take_option(struct serve *s, int code)
{
    CLEANUP_ERROR struct error *err = NULL;

    switch (code) {
    case 'U':
        s->socket = optarg;
        break;
    case 'i':
        s->address = optarg;
        break;
    case 'p':
        s->port = optarg;
        return check_port(optarg);
    case 'r':
        s->read_only = true;
        break;
    case 'f':
        s->format = optarg;
        break;
    case OPT_QMP:
        s->qmp = optarg;
        break;
    case OPT_PIDFILE:
        s->pidfile.path = optarg;
        break;
    default: /* OPT_ALLOW_PATH */
        if (graph_allow_path(s->daemon.graph, optarg, &err) < 0) {
            return cli_error(command.name, err);
        }
        break;
    }
    return 0;
}

/* 0: go on; otherwise exit, with *status. */
static int parse(struct serve *s, int argc, char **argv, int *status)
{
    int code;

    while ((code = cli_next(&command, argc, argv)) >= 0) {
        *status = take_option(s, code);
        if (*status != 0) {
            return -1;
        }
    }
    *status = code == CLI_HELP ? EXIT_SUCCESS : CLI_USAGE;
    if (code != CLI_END) {
        return -1;
    }
    s->images = argv + optind;
    s->image_count = argc - optind;
    if (s->image_count == 0) {
        *status = cli_usage(&command, "give at least one image");
        return -1;
    }
    if (s->socket && (s->address || s->port)) {
        *status = cli_usage(&command, "-U goes without -i and -p");
        return -1;
    }
    return 0;
}

/* --- Start. --- */

static int open_image(struct serve *s, const char *name, const char *image,
                      struct error **errp)
{
    struct graph *g = s->daemon.graph;
    CLEANUP_JSON json_t *options = NULL;
    struct node *n;
    int r = options_from_image(image, s->format, &options, errp);

    if (r < 0) {
        return r;
    }
    if (json_object_set_new(options, "node-name", json_string(name)) < 0 ||
        (s->read_only &&
         json_object_set_new(options, "read-only", json_true()) < 0)) {
        return error_set(errp, ENOMEM, "no memory for options");
    }
    r = graph_open(g, options, &n, errp);
    if (r == 0) {
        r = exports_add(s->daemon.exports, g, n, name, name, NULL,
                        !node_read_only(n), errp);
    }
    return r;
}

static int open_images(struct serve *s, struct error **errp)
{
    for (int i = 0; i < s->image_count; i++) {
        const char *text = s->images[i];
        size_t len = name_length(text);
        char number[32];
        CLEANUP_FREE char *name = strndup(text, len);

        (void)snprintf(number, sizeof(number), "disk%d", i);
        if (!name) {
            return error_set(errp, ENOMEM, "no memory for a name");
        }
        int r = open_image(s, len > 0 ? name : number,
                           len > 0 ? text + len + 1 : text, errp);
        if (r < 0) {
            return r;
        }
    }
    return 0;
}

static int make_fds(struct serve *s, struct error **errp)
{
    sigset_t set;

    /* Blocked in all threads: they inherit it. */
    (void)sigemptyset(&set);
    (void)sigaddset(&set, SIGTERM);
    (void)sigaddset(&set, SIGINT);
    (void)pthread_sigmask(SIG_BLOCK, &set, NULL);
    (void)signal(SIGPIPE, SIG_IGN);
    s->signals = signalfd(-1, &set, SFD_CLOEXEC);
    s->daemon.quit_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (s->signals < 0 || s->daemon.quit_fd < 0) {
        return error_set(errp, errno, "cannot make a descriptor: %s",
                         strerror(errno));
    }
    return 0;
}

static int make_parts(struct serve *s, struct error **errp)
{
    struct daemon *d = &s->daemon;

    d->exports = exports_new();
    d->monitors = monitors_new(d);
    d->jobs = d->monitors ? jobs_new(d->graph, monitors_emit, d->monitors)
                          : NULL;
    s->server = d->exports ? server_new(d->exports) : NULL;
    if (!d->jobs || !s->server) {
        return error_set(errp, ENOMEM, "no memory");
    }
    return 0;
}

/* Each connection has two descriptors. */
static void raise_limits(void)
{
    struct rlimit lim;

    if (getrlimit(RLIMIT_NOFILE, &lim) == 0 && lim.rlim_cur < lim.rlim_max) {
        lim.rlim_cur = lim.rlim_max;
        (void)setrlimit(RLIMIT_NOFILE, &lim);
    }
}

static int start(struct serve *s, struct error **errp)
{
    int r = s->pidfile.path ? pidfile_check(s->pidfile.path, errp) : 0;

    raise_limits();
    if (r < 0 || (r = make_fds(s, errp)) < 0 || (r = make_parts(s, errp)) < 0 ||
        (r = open_images(s, errp)) < 0) {
        return r;
    }
    r = s->socket ? server_listen_unix(s->server, s->socket, errp)
                  : server_listen_tcp(s->server, s->address,
                                      s->port ? s->port : DEFAULT_PORT, errp);
    if (r == 0 && s->qmp) {
        r = monitors_listen(s->daemon.monitors, s->qmp, errp);
    }
    if (r == 0) {
        r = server_start(s->server, errp);
    }
    if (r == 0 && s->pidfile.path) {
        r = pidfile_write(&s->pidfile, errp);
    }
    return r;
}

/* --- Run and stop. --- */

static void run(struct serve *s)
{
    struct pollfd fds[2] = {
        {.fd = s->signals, .events = POLLIN},
        {.fd = s->daemon.quit_fd, .events = POLLIN},
    };

    while (poll(fds, 2, -1) < 0 && errno == EINTR) {
    }
}

struct flush {
    int status;
};

static int flush_export(struct export *e, void *opaque)
{
    struct flush *f = opaque;
    int r = e->writable ? blk_flush(e->blk) : 0;

    if (r < 0) {
        f->status = cli_failed(command.name, "cannot flush '%s': %s", e->name,
                               strerror(-r));
    }
    return 0;
}

/*
 * In the order of what uses what.  A monitor's command may look at jobs and
 * exports: monitors go before these; but they tell how jobs ended, so they go
 * after jobs have.
 */
static int stop(struct serve *s)
{
    struct daemon *d = &s->daemon;
    struct flush flush = {EXIT_SUCCESS};

    if (s->server) {
        server_stop(s->server);
    }
    if (d->jobs) {
        jobs_shutdown(d->jobs);
    }
    if (d->monitors) {
        monitors_stop(d->monitors);
    }
    if (d->exports) {
        (void)exports_each(d->exports, flush_export, &flush);
    }
    server_free(s->server);
    jobs_free(d->jobs);
    monitors_free(d->monitors);
    exports_free(d->exports);
    graph_free(d->graph);
    pidfile_remove(&s->pidfile);
    if (s->signals >= 0) {
        (void)close(s->signals);
    }
    if (d->quit_fd >= 0) {
        (void)close(d->quit_fd);
    }
    return flush.status;
}

int cmd_serve(int argc, char **argv)
{
    CLEANUP_ERROR struct error *err = NULL;
    struct serve s = {.signals = -1, .daemon = {.quit_fd = -1}};
    int status = EXIT_FAILURE;

    s.daemon.graph = graph_new();
    if (!s.daemon.graph) {
        return cli_failed(command.name, "no memory");
    }
    if (parse(&s, argc, argv, &status) == 0) {
        bool ok = start(&s, &err) == 0;

        status = ok ? EXIT_SUCCESS : cli_error(command.name, err);
        if (ok) {
            run(&s);
        }
    }
    int stopped = stop(&s);
    return status ? status : stopped;
}
