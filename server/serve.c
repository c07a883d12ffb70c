/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * nbdelta serve: open the disks, listen, and stop in order.
 *
 *   start  disks -> exports -> jobs, monitors -> sockets -> pidfile
 *   stop   no new clients, requests finished -> jobs cancelled -> monitors
 *          -> disks flushed and closed -> pidfile removed
 */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "cli.h"
#include "commands.h"
#include "daemon.h"
#include "export.h"
#include "monitor.h"
#include "nbdelta/blk.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "nbdelta/job.h"
#include "nbdelta/options.h"
#include "pidfile.h"
#include "server.h"

#define DEFAULT_PORT "10809"

enum { OPT_QMP = CLI_LONG, OPT_PIDFILE, OPT_ALLOW_PATH };

static const struct cli_option option_table[] = {
    { "socket", 'U', "SOCKET", "listen on a Unix socket" },
    { "bind", 'i', "ADDR", "listen on this address (localhost)" },
    { "port", 'p', "PORT", "listen on this TCP port (10809)" },
    { "read-only", 'r', NULL, "open the disks and export them read-only" },
    { "format", 'f', "FORMAT",
      "format of all images: qcow2 or raw; else it is guessed" },
    { "qmp", OPT_QMP, "SOCKET", "take QMP commands on a Unix socket" },
    { "pidfile", OPT_PIDFILE, "FILE",
      "write the process number there once clients can connect" },
    { "allow-path", OPT_ALLOW_PATH, "DIR",
      "let images name backing files in DIR and below; may repeat" },
    { NULL, 0, NULL, NULL },
};

static const struct cli_command command = {
    .name = "serve",
    .usage = "[-U SOCKET | -i ADDR -p PORT] [-r] [-f FORMAT] [--qmp SOCKET]\n"
             "[--pidfile FILE] [--allow-path DIR]... [NAME=]IMAGE...",
    .about = "Serve disk images over NBD until SIGTERM, SIGINT or QMP's quit.\n"
             "Each image is exported under its name (disk0, disk1, ... unless\n"
             "given), the first one also as the default export.  An image is\n"
             "a file name, or options: json:{...} or driver=...,key=value,...\n",
    .options = option_table,
};

struct settings {
    const char *socket;
    const char *address;
    const char *port;
    const char *format;
    const char *qmp;
    const char *pidfile;
    bool read_only;
    char **images;
    int image_count;
};

struct service {
    struct daemon daemon;
    struct server *server;
    int signal_fd;
    int pid_fd;
};

/* --- Disks --- */

/* The length of the NAME in NAME=IMAGE, 0 when there is none. */
static size_t name_length(const char *text)
{
    static const char first[] = "abcdefghijklmnopqrstuvwxyz"
                                "ABCDEFGHIJKLMNOPQRSTUVWXYZ";
    size_t len = strspn(text, "abcdefghijklmnopqrstuvwxyz"
                              "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-");

    return strncmp(text, "driver=", 7) != 0 && text[len] == '=' &&
                   strchr(first, text[0])
               ? len
               : 0;
}

static int set_default(json_t *o, const char *key, json_t *value)
{
    int r = json_object_get(o, key) ? 0 : json_object_set(o, key, value);
    json_decref(value);
    return r;
}

static int open_disk(struct service *s, const struct settings *set,
                     const char *name, const char *image,
                     struct error **errp)
{
    CLEANUP_JSON json_t *o = NULL;
    struct node *n;
    int r = options_from_image(image, set->format, &o, errp);

    if (r < 0) {
        return r;
    }
    if (set_default(o, "node-name", json_string(name)) < 0 ||
        set_default(o, "discard", json_string("unmap")) < 0 ||
        (set->read_only &&
         json_object_set_new(o, "read-only", json_true()) < 0)) {
        return error_set(errp, ENOMEM, "no memory for the disk '%s'", name);
    }
    r = graph_open(s->daemon.graph, o, &n, errp);
    if (r < 0) {
        return r;
    }
    return exports_add(s->daemon.exports, s->daemon.graph, n, name, name, NULL,
                       !node_read_only(n), errp);
}

static int open_disks(struct service *s, const struct settings *set)
{
    for (int i = 0; i < set->image_count; i++) {
        CLEANUP_ERROR struct error *err = NULL;
        CLEANUP_FREE char *name = NULL;
        const char *image = set->images[i];
        size_t len = name_length(image);
        int r = len > 0 ? asprintf(&name, "%.*s", (int)len, image)
                        : asprintf(&name, "disk%d", i);

        if (r < 0) {
            name = NULL;
            return cli_failed(command.name, "no memory");
        }
        image += len > 0 ? len + 1 : 0;
        if (open_disk(s, set, name, image, &err) < 0) {
            return cli_error(image, err);
        }
    }
    return 0;
}

/* --- Start --- */

static int listen_all(struct service *s, const struct settings *set)
{
    CLEANUP_ERROR struct error *err = NULL;
    int r = 0;

    if (set->qmp) {
        r = monitors_listen(s->daemon.monitors, set->qmp, &err);
    }
    if (r == 0 && set->socket) {
        r = server_listen_unix(s->server, set->socket, &err);
    }
    if (r == 0 && (!set->socket || set->port || set->address)) {
        r = server_listen_tcp(s->server, set->address,
                              set->port ? set->port : DEFAULT_PORT, &err);
    }
    if (r == 0) {
        r = server_start(s->server, &err);
    }
    if (r == 0 && set->pidfile) {
        r = s->pid_fd = pidfile_write(set->pidfile, &err);
    }
    return r < 0 ? cli_error(command.name, err) : 0;
}

/* Signals come through a descriptor; threads inherit the mask. */
static int catch_signals(struct service *s)
{
    sigset_t set;

    (void)sigemptyset(&set);
    (void)sigaddset(&set, SIGTERM);
    (void)sigaddset(&set, SIGINT);
    (void)sigaddset(&set, SIGPIPE);
    (void)pthread_sigmask(SIG_BLOCK, &set, NULL);
    (void)sigdelset(&set, SIGPIPE);
    s->signal_fd = signalfd(-1, &set, SFD_CLOEXEC);
    s->daemon.quit_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    return s->signal_fd < 0 || s->daemon.quit_fd < 0
               ? cli_failed(command.name, "cannot wait for signals: %s",
                            strerror(errno))
               : 0;
}

static int set_up(struct service *s)
{
    struct daemon *d = &s->daemon;

    d->exports = exports_new();
    d->monitors = monitors_new(d);
    if (d->exports && d->monitors) {
        d->jobs = jobs_new(d->graph, monitors_emit, d->monitors);
        s->server = server_new(d->exports);
    }
    return d->jobs && s->server ? 0
                                : cli_failed(command.name, "no memory");
}

static void wait_for_end(const struct service *s)
{
    struct pollfd p[2] = {
        { .fd = s->signal_fd, .events = POLLIN },
        { .fd = s->daemon.quit_fd, .events = POLLIN },
    };
    while (poll(p, 2, -1) < 0 && errno == EINTR) {
    }
}

/* --- Stop --- */

static int flush_export(struct export *e, void *opaque)
{
    int *status = opaque;
    int r = e->writable ? blk_flush(e->blk) : 0;

    if (r < 0) {
        *status = cli_failed(e->name, "cannot flush the disk: %s",
                             strerror(-r));
    }
    return 0;
}

static int tear_down(struct service *s, const struct settings *set)
{
    struct daemon *d = &s->daemon;
    int status = EXIT_SUCCESS;

    if (s->server) {
        server_stop(s->server);
    }
    if (d->jobs) {
        jobs_shutdown(d->jobs);
    }
    if (d->monitors) {
        monitors_stop(d->monitors);
        monitors_free(d->monitors);
    }
    if (d->exports) {
        (void)exports_each(d->exports, flush_export, &status);
    }
    server_free(s->server);
    jobs_free(d->jobs);
    exports_free(d->exports);
    graph_free(d->graph);
    if (set->pidfile) {
        pidfile_remove(set->pidfile, s->pid_fd);
    }
    if (s->signal_fd >= 0) {
        (void)close(s->signal_fd);
    }
    if (d->quit_fd >= 0) {
        (void)close(d->quit_fd);
    }
    return status;
}

static int run(struct service *s, const struct settings *set)
{
    int status = catch_signals(s);

    if (status == 0) {
        status = set_up(s);
    }
    if (status == 0) {
        status = open_disks(s, set);
    }
    if (status == 0) {
        status = listen_all(s, set);
    }
    if (status == 0) {
        wait_for_end(s);
    }
    int end = tear_down(s, set);
    return status ? status : end;
}

/* --- The command line --- */

static int take_option(struct graph *g, struct settings *set, int code)
{
    CLEANUP_ERROR struct error *err = NULL;

    switch (code) {
    case 'U':
        set->socket = optarg;
        return 0;
    case 'i':
        set->address = optarg;
        return 0;
    case 'p':
        set->port = optarg;
        return 0;
    case 'r':
        set->read_only = true;
        return 0;
    case 'f':
        set->format = optarg;
        return 0;
    case OPT_QMP:
        set->qmp = optarg;
        return 0;
    case OPT_PIDFILE:
        set->pidfile = optarg;
        return 0;
    default:
        return graph_allow_path(g, optarg, &err) < 0
                   ? cli_error("--allow-path", err)
                   : 0;
    }
}

int cmd_serve(int argc, char **argv)
{
    struct service s = { .signal_fd = -1, .pid_fd = -1 };
    struct settings set = { 0 };
    int status = EXIT_SUCCESS;
    int code = CLI_END;

    s.daemon.quit_fd = -1;
    s.daemon.graph = graph_new();
    if (!s.daemon.graph) {
        return cli_failed(command.name, "no memory");
    }
    while (status == EXIT_SUCCESS &&
           (code = cli_next(&command, argc, argv)) >= 0) {
        status = take_option(s.daemon.graph, &set, code);
    }
    set.images = argv + optind;
    set.image_count = argc - optind;
    if (status == EXIT_SUCCESS && code == CLI_END) {
        if (set.image_count == 0) {
            status = cli_usage(&command, "no image is given");
        } else {
            return run(&s, &set);
        }
    } else if (code == CLI_BAD) {
        status = CLI_USAGE;
    }
    graph_free(s.daemon.graph);
    return status;
}
