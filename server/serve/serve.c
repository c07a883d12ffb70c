/* SPDX-License-Identifier: BSD-3-Clause */
/* nbdelta serve: from the command line to a running daemon, and its end. */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "backup/session.h"
#include "cli/cli.h"
#include "cli/commands.h"
#include "commands/table.h"
#include "daemon.h"
#include "keyval.h"
#include "log/log.h"
#include "log/sink.h"
#include "nbd/export.h"
#include "nbd/server.h"
#include "nbdelta/blk.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "nbdelta/job.h"
#include "nbdelta/kick.h"
#include "nbdelta/options.h"
#include "nbdelta/point.h"
#include "nbdelta/text.h"
#include "net/tls-policy.h"
#include "net/unix-socket.h"
#include "objects/object.h"
#include "process.h"
#include "qmp/chardev.h"
#include "qmp/monitor.h"
#include "serve/activation.h"
#include "serve/add-fd.h"
#include "serve/daemonize.h"
#include "serve/images.h"
#include "serve/notices.h"
#include "serve/notify.h"
#include "serve/pidfile.h"
#include "serve/serve-options.h"
#include "serve/stopper.h"
#include "vm/device.h"
#include "vm/qemu-io.h"

#define DEFAULT_PORT    "10809"
#define CONNECTIONS_MAX 1000

struct serve {
    struct serve_config config;
    struct pidfile pidfile;
    struct images images;

    struct daemon daemon;
    struct chardevs *chardevs;
    struct stopper *stopper;
    struct notices *notices;
    struct notify notify;
    struct activation activation; /* sockets that were given */
    int signals;                  /* signalfd */
    int ready;                    /* of daemonize */
};

/* --- Options, in their order. --- */

/* Parse @text as arguments of @cmd, which need not be in the table, and run
 * it. */
static int run_as_command(struct daemon *d, const struct qmp_command *cmd,
                          const char *text, const char *implied,
                          struct error **errp)
{
    struct qmp_state state = {.negotiated = true, .received = -1};
    struct qmp_call call = {.daemon = d, .state = &state};
    int r = keyval_parse(text, implied, cmd->args, &call.args, errp);

    if (r < 0) {
        return r;
    }
    mutex_lock(&d->jobs->lock);
    r = cmd->fn(&call, errp);
    mutex_unlock(&d->jobs->lock);
    json_decref(call.args);
    json_decref(call.ret);
    return r;
}

static int listen_for_monitors(struct serve *s, const char *path,
                               struct error **errp)
{
    CLEANUP_JSON json_t *addr = json_pack("{s:s, s:s}", "type", "unix", "path",
                                          path);
    struct socket_access access = {.mode = 0600};

    /* A monitor does what the daemon's user can do: it is for people who were
     * named, and never for everybody. */
    if (s->config.access.has_group) {
        access = s->config.access;
        access.mode &= 0770;
    }
    return addr ? monitors_listen(s->daemon.monitors, addr, &access, errp)
                : error_set(errp, EINVAL, "the address is not UTF-8 text");
}

static int do_option(struct serve *s, const struct serve_item *it,
                     struct error **errp)
{
    struct daemon *d = &s->daemon;

    switch (it->code) {
    case OPT_QMP:
        return listen_for_monitors(s, it->arg, errp);
    case OPT_MONITOR:
        return monitors_add(d->monitors, it->arg, errp);
    case OPT_CHARDEV:
        return chardevs_add(s->chardevs, it->arg, d->quit_fd,
                            !s->config.daemonize, errp);
    case OPT_BLOCKDEV:
        return run_as_command(d, qmp_find_command("blockdev-add"), it->arg,
                              "driver", errp);
    case OPT_EXPORT:
        return run_as_command(d, qmp_find_command("block-export-add"), it->arg,
                              "type", errp);
    case OPT_OBJECT:
        return run_as_command(d, qmp_find_command("object-add"), it->arg,
                              "qom-type", errp);
    case OPT_NBD_SERVER:
        return run_as_command(d, &qmp_nbd_server_option, it->arg, NULL, errp);
    case OPT_DRIVE:
        return devices_add_drive(d, it->arg, errp);
    case OPT_DEVICE:
        return devices_add_device(d, it->arg, errp);
    case OPT_ADD_FD:
        return add_fd_option(d->graph, it->arg, errp);
    case OPT_ALLOW_PATH:
        return graph_allow_path(d->graph, it->arg, errp);
    default:
        return images_open(&s->images, it->arg, errp);
    }
}

/* The error names the option.  The text of an object may be a secret. */
static void name_option_in_error(const struct serve_item *it,
                                 struct error **errp)
{
    if (it->name && it->code == OPT_OBJECT) {
        error_prefix(errp, "--%s: ", it->name);
    } else if (it->name) {
        error_prefix(errp, "--%s %s: ", it->name, it->arg);
    }
}

/* Before the first image is opened it must be known which files images may
 * name, and which descriptors there are; and a client that can connect to the
 * socket of --qmp finds all images open. */
static int pass_of(const struct serve_item *it)
{
    return it->code == OPT_ALLOW_PATH || it->code == OPT_ADD_FD ? 0
           : it->code == OPT_QMP                                ? 2
                                                                : 1;
}

static int do_options(struct serve *s, struct error **errp)
{
    for (int pass = 0; pass < 3; pass++) {
        for (unsigned i = 0; i < s->config.count; i++) {
            const struct serve_item *it = &s->config.items[i];
            int r = pass_of(it) == pass ? do_option(s, it, errp) : 0;

            if (r < 0) {
                name_option_in_error(it, errp);
                return r;
            }
        }
    }
    return 0;
}

/* --- Start. --- */

static int make_fds(struct serve *s, struct error **errp)
{
    sigset_t set;

    process_take_signals(&set);
    (void)signal(SIGPIPE, SIG_IGN);
    s->signals = signalfd(-1, &set, SFD_CLOEXEC);
    s->daemon.quit_fd = kick_new();
    if (s->signals < 0 || s->daemon.quit_fd < 0) {
        return error_set(errp, errno, "cannot make a descriptor: %s",
                         strerror(errno));
    }
    return 0;
}

static int make_parts(struct serve *s, struct error **errp)
{
    struct daemon *d = &s->daemon;

    d->graph = graph_new();
    if (d->graph) {
        graph_follow(d->graph, s->config.follow);
    }
    d->service = &qmp_service;
    d->objects = objects_new(d->graph);
    d->devices = devices_new();
    d->io_tasks = io_tasks_new();
    d->vm_compat = s->config.vm_compat;
    d->poll_max = s->config.poll_max;
    d->exit_on_disconnect = s->config.exit_on_disconnect;
    s->chardevs = chardevs_new(d->objects);
    d->monitors = s->chardevs ? monitors_new(d, s->chardevs) : NULL;
    d->exports = d->graph && d->monitors
                     ? exports_new(d, monitors_emit, d->monitors)
                     : NULL;
    d->jobs = d->graph && d->monitors
                  ? jobs_new(d->graph, monitors_emit, d->monitors)
                  : NULL;
    s->notices = d->exports ? notices_new(d) : NULL;
    d->servers = d->exports ? servers_new(d) : NULL;
    d->pulls = pulls_new(d);
    if (!s->notices || !d->objects || !d->devices || !d->io_tasks || !d->jobs ||
        !d->servers || !d->pulls) {
        return error_nomem(errp);
    }
    s->images = (struct images){
        .graph = d->graph,
        .exports = d->exports,
        .format = s->config.format,
        .overlay = s->config.overlay,
        .read_only = s->config.read_only,
        .follow = s->config.follow,
    };
    return notices_start(s->notices, errp);
}

static void remove_files(void *opaque)
{
    struct serve *s = opaque;

    unix_sockets_forget();
    pidfile_remove(&s->pidfile);
}

static int make_stopper(struct serve *s, struct error **errp)
{
    const struct stopper_options o = {
        .daemon = &s->daemon,
        .signals = s->signals,
        .limit_s = s->config.stop_timeout,
        .last = remove_files,
        .opaque = s,
    };

    s->stopper = stopper_new(&o, errp);
    return s->stopper ? 0 : -ENOMEM;
}

/* How many sockets were given for NBD? */
static int count_activated(const struct serve *s)
{
    int n = 0;

    for (int i = 0; i < s->activation.count; i++) {
        n += !activation_is_monitor(&s->activation, i);
    }
    return n;
}

/* Listen on the sockets that were given: for monitors (@server is NULL), or the
 * others. */
static int listen_activated(const struct serve *s, struct server *server,
                            struct error **errp)
{
    int r = 0;

    for (int i = 0; r == 0 && i < s->activation.count; i++) {
        char number[16];

        if (activation_is_monitor(&s->activation, i) != !server) {
            continue;
        }
        (void)snprintf(number, sizeof(number), "%d", ACTIVATION_FIRST + i);
        CLEANUP_JSON json_t *addr = json_pack("{s:s, s:s}", "type", "fd", "str",
                                              number);
        r = !addr    ? error_nomem(errp)
            : server ? server_listen(server, addr, errp)
                     : monitors_listen(s->daemon.monitors, addr, NULL, errp);
    }
    return r;
}

/* What -U, -i and -p say. */
static int listen_given(const struct serve_config *cfg, struct server *server,
                        struct error **errp)
{
    CLEANUP_JSON json_t *addr =
        cfg->socket
            ? json_pack("{s:s, s:s}", "type", "unix", "path", cfg->socket)
            : json_pack("{s:s, s:s*, s:s}", "type", "inet", "host",
                        cfg->address, "port",
                        cfg->port ? cfg->port : DEFAULT_PORT);

    return addr ? server_listen(server, addr, errp)
                : error_set(errp, EINVAL, "the address is not UTF-8 text");
}

/* Open the server that -U, -i, -p and socket activation ask for, and images
 * where nothing else does. */
static int listen_short(struct serve *s, struct error **errp)
{
    const struct serve_config *cfg = &s->config;
    struct server_options o = {.max = CONNECTIONS_MAX, .access = cfg->access};
    bool given = cfg->socket || cfg->address || cfg->port;
    struct server *server;

    int activated = count_activated(s);
    if (given && activated > 0) {
        return error_set(errp, EINVAL,
                         "-U, -i and -p go without socket activation");
    }
    if (!given && activated == 0 && (!cfg->has_images || cfg->has_server)) {
        return 0;
    }
    int r = tls_policy_load(cfg->tls, cfg->tls_certificates, cfg->tls_psk,
                            cfg->tls_verify_peer, &o.policy, errp);
    if (r < 0) {
        return r;
    }
    r = server_open(s->daemon.servers, &o, &server, errp);
    tls_policy_unref(o.policy);
    if (r < 0) {
        return r;
    }
    r = activated > 0 ? listen_activated(s, server, errp)
                      : listen_given(cfg, server, errp);
    server_unref(server);
    return r;
}

/* Images are exports of the server without a name: there has to be one. */
static int check_server(const struct serve *s, struct error **errp)
{
    struct server *server = server_find(s->daemon.servers, NULL, NULL);

    server_unref(server);
    return server || !s->config.has_images
               ? 0
               : error_set(errp, EINVAL,
                           "the images have no server: give -U, -p or an "
                           "--nbd-server without id");
}

/* Be told to end when the process that has started this one ends. */
static int follow_parent(struct error **errp)
{
    pid_t parent = getppid();

    if (prctl(PR_SET_PDEATHSIG, PROCESS_ORPHANED) < 0 || getppid() != parent) {
        return error_set(errp, ESRCH, "cannot follow the parent process");
    }
    return 0;
}

/* Take what the parent has handed over. */
static int take_over(struct serve *s, struct error **errp)
{
    notify_init(&s->notify);
    if (!s->config.storage_daemon) {
        int r = activation_take(&s->activation, errp);
        if (r < 0) {
            return r;
        }
    }
    return s->config.exit_with_parent ? follow_parent(errp) : 0;
}

static int print_uri(struct export *e, void *opaque)
{
    const struct serve *s = opaque;
    CLEANUP_FREE char *uri = servers_uri(s->daemon.servers, e);

    return !uri || puts(uri) < 0 ? 1 : 0;
}

static int print_uris(struct serve *s, struct error **errp)
{
    if (exports_each(s->daemon.exports, print_uri, s) != 0) {
        return error_set(errp, EINVAL,
                         "the exports have no URIs that could be printed");
    }
    return fflush(stdout) < 0
               ? error_set(errp, errno, "standard output: %s", strerror(errno))
               : 0;
}

/* A daemon in the background has no standard error, unless it was asked to keep
 * it.  What goes well is told when all has. */
static int open_log(const struct serve_config *cfg, struct error **errp)
{
    log_up_to(cfg->log_level < TELL_WARNING ? cfg->log_level : TELL_WARNING);
    return log_to(cfg->log         ? cfg->log
                  : cfg->daemonize ? "syslog"
                                   : "stderr",
                  errp);
}

static int tell_export(struct export *e, void *opaque)
{
    (void)opaque;
    export_tell(e);
    return 0;
}

static void tell_start(struct serve *s)
{
    log_up_to(s->config.log_level);
    servers_tell(s->daemon.servers);
    for (unsigned i = 0; i < s->config.count; i++) {
        if (s->config.items[i].code == OPT_QMP) {
            log_line(TELL_INFO, "monitor listens: %.200s",
                     s->config.items[i].arg);
        }
    }
    (void)exports_each(s->daemon.exports, tell_export, NULL);
    log_line(TELL_INFO, "nbdelta %s is ready, process %d", NBDELTA_VERSION,
             (int)getpid());
}

/* Clients that come meanwhile wait in the queues of the sockets. */
static int start_daemon(struct serve *s, struct error **errp)
{
    int r = take_over(s, errp);

    if (r < 0) {
        return r;
    }
    r = open_log(&s->config, errp);
    if (r < 0) {
        return r;
    }
    s->pidfile.path = s->config.pidfile;
    r = pidfile_check(&s->pidfile, errp);
    if (r < 0) {
        return r;
    }
    if (s->config.daemonize && (r = daemonize(&s->ready, errp)) < 0) {
        return r;
    }
    point_clean(NULL);
    if ((r = make_fds(s, errp)) < 0 || (r = make_parts(s, errp)) < 0 ||
        (r = make_stopper(s, errp)) < 0 || (r = listen_short(s, errp)) < 0 ||
        (r = do_options(s, errp)) < 0 ||
        (r = listen_activated(s, NULL, errp)) < 0 ||
        (r = check_server(s, errp)) < 0 ||
        (r = exports_start(s->daemon.exports, errp)) < 0 ||
        (r = servers_start(s->daemon.servers, errp)) < 0 ||
        (r = pidfile_write(&s->pidfile, errp)) < 0) {
        return r;
    }
    if ((r = monitors_start(s->daemon.monitors, errp)) < 0 ||
        (s->config.print_uri && (r = print_uris(s, errp)) < 0)) {
        return r;
    }
    tell_start(s);
    daemonize_ready(s->ready,
                    s->config.log && strcmp(s->config.log, "stderr") == 0);
    notify_ready(&s->notify, &s->daemon);
    return 0;
}

/* --- Run and stop. --- */

static void wait_for_quit(struct serve *s)
{
    struct pollfd fd = {.fd = s->daemon.quit_fd, .events = POLLIN};

    while (poll(&fd, 1, -1) < 0 && errno == EINTR) {
    }
}

static int flush_export(struct export *e, void *opaque)
{
    int *status = opaque;
    bool writes = e->writable && node_active(blk_node(e->blk));
    int r = writes ? blk_flush(e->blk) : 0;

    if (r < 0) {
        log_line(TELL_ERROR, "cannot flush '%.200s': %s", e->name,
                 strerror(-r));
        *status = EXIT_FAILURE;
    }
    return 0;
}

/*
 * The order follows what uses what.  A monitor's command may look at jobs and
 * exports, so monitors are stopped before these are freed.  Monitors tell how
 * jobs ended, so they are stopped after jobs have ended.  Their connections end
 * last: a client that sees the end may open the images at once.
 */
static int stop_daemon(struct serve *s)
{
    struct daemon *d = &s->daemon;
    int status = EXIT_SUCCESS;

    /* The stopper counts from here, whatever ends it. */
    daemon_ask_quit(d, NULL);
    unix_sockets_keep();
    if (d->graph) {
        graph_give_up(d->graph);
    }
    if (d->servers) {
        servers_stop(d->servers);
    }
    if (d->exports) {
        (void)exports_each(d->exports, flush_export, &status);
    }
    if (d->jobs && d->exports) {
        exports_remove_all(d->exports, 0);
        mutex_lock(&d->jobs->lock);
        exports_collect(d->exports, d->jobs);
        mutex_unlock(&d->jobs->lock);
    }
    if (d->jobs && d->pulls) {
        pulls_stop(d->pulls);
    }
    if (d->jobs) {
        jobs_shutdown(d->jobs);
        daemon_ended(d);
    }
    if (s->notices) {
        notices_stop(s->notices);
    }
    if (d->monitors) {
        monitors_stop(d->monitors);
    }
    if (d->exports) {
        exports_stop(d->exports);
    }
    servers_free(d->servers);
    jobs_free(d->jobs);
    pulls_free(d->pulls);
    chardevs_free(s->chardevs);
    exports_free(d->exports);
    io_tasks_free(d->io_tasks);
    devices_free(d->devices);
    objects_free(d->objects);
    if (d->graph) {
        graph_close_all(d->graph);
    }
    if (!stopper_free(s->stopper)) {
        status = EXIT_FAILURE;
    }
    graph_free(d->graph);
    notices_free(s->notices);
    images_close(&s->images);
    remove_files(s);
    monitors_free(d->monitors);
    notify_end(&s->notify);
    activation_free(&s->activation);
    if (s->signals >= 0) {
        (void)close(s->signals);
    }
    if (d->quit_fd >= 0) {
        (void)close(d->quit_fd);
    }
    mutex_destroy(&d->turn_lock);
    cond_destroy(&d->ended);
    free(s->config.items);
    return status;
}

static int serve(bool storage_daemon, int argc, char **argv)
{
    CLEANUP_ERROR struct error *err = NULL;
    struct serve s = {.signals = -1,
                      .ready = -1,
                      .notify = {.wake = -1},
                      .daemon = {.quit_fd = -1},
                      .pidfile = PIDFILE_INIT};
    int status = EXIT_FAILURE;
    bool ok = false;

    log_init(cli_program());
    cli_mark_errors(sink_is_journal() ? "<3>" : "");
    cond_init(&s.daemon.ended);
    mutex_init(&s.daemon.turn_lock, LOCK_TURN, NULL);
    if (serve_parse(&s.config, storage_daemon, argc, argv, &status) == 0) {
        ok = start_daemon(&s, &err) == 0;
        status = ok ? EXIT_SUCCESS : cli_error(s.config.command->name, err);
        if (ok) {
            wait_for_quit(&s);
            notify_stopping(&s.notify);
        }
    }
    int stopped = stop_daemon(&s);
    if (!ok) {
        return status;
    }
    log_line(TELL_INFO, "all is closed%s",
             stopped ? "; what may be lost is told above" : "");
    return stopped;
}

int cmd_serve(int argc, char **argv)
{
    return serve(false, argc, argv);
}

int cmd_storage_daemon(int argc, char **argv)
{
    cli_set_program(STORAGE_DAEMON);
    return serve(true, argc, argv);
}
