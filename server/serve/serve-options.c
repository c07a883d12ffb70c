/* SPDX-License-Identifier: BSD-3-Clause */
/* The options of `nbdelta serve`, and what goes with what. */
#include "serve/serve-options.h"

#include <ctype.h>
#include <getopt.h>
#include <grp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/commands.h"
#include "nbdelta/bytes.h"
#include "qmp/version.h"
#include "serve/option-help.h"
#include "serve/stopper.h"

/* Microseconds that a client is polled for at a time. */
#define POLL_MAX       100
#define POLL_MAX_LIMIT 10000

#define DAEMON_OPTIONS                                                         \
    {"blockdev", OPT_BLOCKDEV, "OPTIONS",                                      \
     "open a node, as blockdev-add does"},                                     \
        {"chardev", OPT_CHARDEV, "OPTIONS", "make a character device"},        \
        {"daemonize", OPT_DAEMONIZE, NULL, "go to the background when ready"}, \
        {"export", OPT_EXPORT, "OPTIONS",                                      \
         "export a node, as block-export-add does"},                           \
        {"monitor", OPT_MONITOR, "OPTIONS",                                    \
         "make a QMP monitor on a chardev (role=backup: only for backups)"},   \
        {"nbd-server", OPT_NBD_SERVER, "OPTIONS",                              \
         "listen for NBD clients, as nbd-server-start does"},                  \
        {"object", OPT_OBJECT, "OPTIONS",                                      \
         "make an object, as object-add does"},                                \
        {"pidfile", OPT_PIDFILE, "FILE", "write the process ID when ready"},   \
        {"trace", 'T', "OPTIONS", "accepted; there is nothing to trace"},      \
    {                                                                          \
        "version", 'V', NULL, "print the version"                              \
    }

static const struct cli_option serve_options[] = {
    {"unix", 'U', "SOCKET", "listen on a Unix socket"},
    {"address", 'i', "ADDR", "listen on this address (localhost)"},
    {"port", 'p', "PORT", "listen on this TCP port (10809; 0: any free one)"},
    {"read-only", 'r', NULL, "open images read-only; clients cannot write"},
    {"tls", OPT_TLS, "off|on|require",
     "use TLS (default: require if there are keys, else off)"},
    {"tls-certificates", OPT_TLS_CERTIFICATES, "DIR",
     "use TLS with the certificates in DIR"},
    {"tls-psk", OPT_TLS_PSK, "FILE", "use TLS with the users' keys in FILE"},
    {"tls-verify-peer", OPT_TLS_VERIFY_PEER, NULL,
     "accept only clients with a certificate of the CA"},
    {"format", 'f', "FORMAT", "format of the images (default: look at them)"},
    {"overlay", OPT_OVERLAY, "FILE|temporary",
     "write to a qcow2 file over each image, not to the image"},
    {"qmp", OPT_QMP, "SOCKET", "listen for QMP clients on a Unix socket"},
    {"allow-path", OPT_ALLOW_PATH, "PATH",
     "let images name files in PATH and below, too"},
    {"follow", OPT_FOLLOW, "none|data|beside",
     "files that images may name (beside)"},
    {"exit-on-disconnect", OPT_EXIT_ON_DISCONNECT, NULL,
     "end when the last client has gone, as qemu-nbd does"},
    {"exit-with-parent", OPT_EXIT_WITH_PARENT, NULL,
     "end when the parent process ends"},
    {"poll-max", OPT_POLL_MAX, "MICROSECONDS",
     "how long to poll a busy client before the server sleeps (100; 0: never)"},
    {"print-uri", OPT_PRINT_URI, NULL,
     "print the URIs of the exports when ready"},
    {"log", OPT_LOG, "stderr|syslog|null|FILE",
     "where events are told (stderr; with --daemonize: syslog)"},
    {"log-level", OPT_LOG_LEVEL, "error|warning|info|debug",
     "which ones, at most (info)"},
    {"socket-mode", OPT_SOCKET_MODE, "MODE",
     "permissions of the socket of -U, as for chmod (600)"},
    {"socket-group", OPT_SOCKET_GROUP, "GROUP",
     "group of the sockets of -U and --qmp, which may then connect"},
    {"stop-timeout", OPT_STOP_TIMEOUT, "SECONDS",
     "how long to wait at the end for storage that hangs (60; 0: for ever)"},
    {"vm-compat", OPT_VM_COMPAT, NULL,
     "stand in for a QEMU without a guest; see the man page"},
    {"drive", OPT_DRIVE, "OPTIONS",
     "open a disk as QEMU's -drive does (--vm-compat)"},
    {"device", OPT_DEVICE, "OPTIONS",
     "give a drive another name (--vm-compat)"},
    {"add-fd", OPT_ADD_FD, "OPTIONS",
     "put an inherited descriptor into a set (--vm-compat)"},
    DAEMON_OPTIONS,
    {NULL, 0, NULL, NULL},
};

static const struct cli_command serve_command = {
    .name = "serve",
    .usage = "[-U SOCKET | -i ADDR -p PORT] [-r] [-f FORMAT] [--qmp SOCKET] "
             "[--pidfile FILE]\n"
             "[--overlay FILE|temporary] [--allow-path PATH]... [--follow "
             "none|data|beside] "
             "[--daemonize]\n"
             "[OPTION...] [NAME=]{IMAGE | DIR[@POINT]}...",
    .about =
        "Serve disk images to NBD clients until SIGTERM, SIGINT or QMP's "
        "quit.\n"
        "Each image is exported under its NAME (default: disk0, disk1, ...).  "
        "The first\n"
        "is also the default export.  An image is a file name, or options: "
        "json:{...} or\n"
        "driver=...,key=value,...  Of a backup directory DIR, the disks of a "
        "point (default:\n"
        "latest) are exported read-only: see nbdelta-backup(1).\n"
        "\n"
        "The options of qemu-storage-daemon are among these.  They take JSON "
        "or\n"
        "key=value,... and take effect in their order, together with the "
        "images.  With\n"
        "one of them, no image has to be given.\n",
    .options = serve_options,
    .in_order = true,
    .operands = "NAME=IMAGE...",
};

static const struct cli_option daemon_options[] = {
    DAEMON_OPTIONS,
    {NULL, 0, NULL, NULL},
};

static const struct cli_command daemon_command = {
    .name = STORAGE_DAEMON,
    .usage = "[OPTION...]",
    .about = "Serve block devices over NBD, under QMP's control, as QEMU's "
             "program of this\nname does.  This is nbdelta.  Options take "
             "effect in their order.\n",
    .options = daemon_options,
    .in_order = true,
};

static int check_port(const struct serve_config *cfg)
{
    const char *text = cfg->port;
    char *end;
    long n = strtol(text, &end, 10);

    if (!isdigit((unsigned char)text[0]) || *end || n > 65535) {
        return cli_usage(cfg->command, "'%s' is not a port (0 to 65535)", text);
    }
    return 0;
}

static int take_mode(struct serve_config *cfg)
{
    char *end;
    unsigned long mode = strtoul(optarg, &end, 8);

    if (!isdigit((unsigned char)optarg[0]) || *end || mode > 0777) {
        return cli_usage(cfg->command, "'%s' is not a mode (0 to 777)", optarg);
    }
    cfg->access.mode = (mode_t)mode;
    cfg->has_mode = true;
    return 0;
}

/* A name, or a number. */
static int take_group(struct serve_config *cfg)
{
    const struct group *g = getgrnam(optarg);
    char *end;
    unsigned long n = strtoul(optarg, &end, 10);

    if (!g && (!isdigit((unsigned char)optarg[0]) || *end || n >= UINT32_MAX)) {
        return cli_usage(cfg->command, "there is no group '%s'", optarg);
    }
    cfg->access.group = g ? g->gr_gid : (gid_t)n;
    cfg->access.has_group = true;
    return 0;
}

static int take_follow(struct serve_config *cfg)
{
    if (strcmp(optarg, "none") == 0) {
        cfg->follow = FOLLOW_NONE;
    } else if (strcmp(optarg, "beside") == 0) {
        cfg->follow = FOLLOW_BESIDE;
    } else if (strcmp(optarg, "data") == 0) {
        cfg->follow = FOLLOW_DATA;
    } else {
        return cli_usage(cfg->command,
                         "--follow is 'none', 'beside' or 'data', not '%s'",
                         optarg);
    }
    return 0;
}

static int take_timeout(struct serve_config *cfg)
{
    char *end;
    unsigned long n = strtoul(optarg, &end, 10);

    if (!isdigit((unsigned char)optarg[0]) || *end || n > STOP_SECONDS_MAX) {
        return cli_usage(cfg->command, "'%s' is no number of seconds (0 to %d)",
                         optarg, STOP_SECONDS_MAX);
    }
    cfg->stop_timeout = (unsigned)n;
    return 0;
}

static int take_poll_max(struct serve_config *cfg)
{
    char *end;
    unsigned long n = strtoul(optarg, &end, 10);

    if (!isdigit((unsigned char)optarg[0]) || *end || n > POLL_MAX_LIMIT) {
        return cli_usage(cfg->command,
                         "'%s' is no number of microseconds (0 to %d)", optarg,
                         POLL_MAX_LIMIT);
    }
    cfg->poll_max = (unsigned)n;
    return 0;
}

static int take_log_level(struct serve_config *cfg)
{
    static const struct {
        const char *name;
        enum tell_level level;
    } levels[] = {
        {"error", TELL_ERROR},
        {"warning", TELL_WARNING},
        {"info", TELL_INFO},
        {"debug", TELL_DEBUG},
    };

    for (size_t i = 0; i < ARRAY_SIZE(levels); i++) {
        if (strcmp(optarg, levels[i].name) == 0) {
            cfg->log_level = levels[i].level;
            return 0;
        }
    }
    return cli_usage(cfg->command,
                     "--log-level is 'error', 'warning', 'info' or 'debug', "
                     "not '%s'",
                     optarg);
}

static const char *option_name(const struct serve_config *cfg, int code)
{
    const struct cli_option *o = cfg->command->options;

    while (o->name && o->code != code) {
        o++;
    }
    return o->name;
}

static void add_item(struct serve_config *cfg, int code)
{
    cfg->items[cfg->count++] = (struct serve_item){
        .code = code,
        .name = option_name(cfg, code),
        .arg = optarg,
    };
    cfg->has_images |= code == CLI_ARGUMENT;
    cfg->has_server |= code == OPT_NBD_SERVER;
    cfg->has_drives |= code == OPT_DRIVE || code == OPT_DEVICE ||
                       code == OPT_ADD_FD;
}

/* 0: go on. */
static int take_serve_option(struct serve_config *cfg, int code)
{
    switch (code) {
    case 'U':
        cfg->socket = optarg;
        break;
    case 'i':
        cfg->address = optarg;
        break;
    case 'p':
        cfg->port = optarg;
        return check_port(cfg);
    case 'r':
        cfg->read_only = true;
        break;
    case 'f':
        cfg->format = optarg;
        break;
    case 'T':
        break;
    case OPT_OVERLAY:
        cfg->overlay = optarg;
        break;
    case OPT_TLS:
        cfg->tls = optarg;
        break;
    case OPT_TLS_CERTIFICATES:
        cfg->tls_certificates = optarg;
        break;
    case OPT_TLS_PSK:
        cfg->tls_psk = optarg;
        break;
    case OPT_TLS_VERIFY_PEER:
        cfg->tls_verify_peer = true;
        break;
    case OPT_PIDFILE:
        cfg->pidfile = optarg;
        break;
    case OPT_DAEMONIZE:
        cfg->daemonize = true;
        break;
    case OPT_EXIT_ON_DISCONNECT:
        cfg->exit_on_disconnect = true;
        break;
    case OPT_EXIT_WITH_PARENT:
        cfg->exit_with_parent = true;
        break;
    case OPT_PRINT_URI:
        cfg->print_uri = true;
        break;
    case OPT_SOCKET_MODE:
        return take_mode(cfg);
    case OPT_SOCKET_GROUP:
        return take_group(cfg);
    case OPT_FOLLOW:
        return take_follow(cfg);
    case OPT_STOP_TIMEOUT:
        return take_timeout(cfg);
    case OPT_POLL_MAX:
        return take_poll_max(cfg);
    case OPT_LOG:
        cfg->log = optarg;
        break;
    case OPT_LOG_LEVEL:
        return take_log_level(cfg);
    case OPT_VM_COMPAT:
        cfg->vm_compat = true;
        break;
    default:
        add_item(cfg, code);
        break;
    }
    return 0;
}

static int check_tls_options(const struct serve_config *cfg)
{
    const char *mode = cfg->tls ? cfg->tls : "require";
    bool any = cfg->tls_certificates || cfg->tls_psk;

    if (strcmp(mode, "off") != 0 && strcmp(mode, "on") != 0 &&
        strcmp(mode, "require") != 0) {
        return cli_usage(cfg->command,
                         "--tls is 'off', 'on' or 'require', not '%s'", mode);
    }
    if (cfg->tls && strcmp(mode, "off") != 0 && !any) {
        return cli_usage(cfg->command,
                         "--tls needs --tls-certificates or --tls-psk");
    }
    if (cfg->tls_certificates && cfg->tls_psk) {
        return cli_usage(cfg->command,
                         "--tls-certificates goes without --tls-psk");
    }
    if (cfg->tls_verify_peer && !cfg->tls_certificates) {
        return cli_usage(cfg->command,
                         "--tls-verify-peer needs --tls-certificates");
    }
    return any && cfg->has_server && !cfg->socket && !cfg->address && !cfg->port
               ? cli_usage(cfg->command,
                           "the --tls options are for -U, -i and -p: "
                           "--nbd-server has tls-creds")
               : 0;
}

static int check_config(const struct serve_config *cfg)
{
    if (cfg->command == &daemon_command) {
        return cfg->has_images ? cli_usage(cfg->command, "Unexpected argument")
                               : 0;
    }
    if (cfg->has_drives && !cfg->vm_compat) {
        return cli_usage(cfg->command,
                         "--drive, --device and --add-fd need --vm-compat");
    }
    if (cfg->count == 0 && !cfg->vm_compat) {
        return cli_usage(cfg->command, "give at least one image");
    }
    if (cfg->overlay && (cfg->read_only || !cfg->has_images)) {
        return cli_usage(cfg->command, cfg->read_only
                                           ? "--overlay goes without -r"
                                           : "--overlay is for images");
    }
    if (cfg->socket && (cfg->address || cfg->port)) {
        return cli_usage(cfg->command, "-U goes without -i and -p");
    }
    if (cfg->daemonize && cfg->exit_with_parent) {
        return cli_usage(cfg->command,
                         "--daemonize goes without --exit-with-parent");
    }
    return check_tls_options(cfg);
}

static void print_version(bool storage_daemon)
{
    if (storage_daemon) {
        printf(STORAGE_DAEMON " version %s (nbdelta %s)\n", qmp_like_version,
               NBDELTA_VERSION);
    } else {
        printf("nbdelta %s\n", NBDELTA_VERSION);
    }
}

int serve_parse(struct serve_config *cfg, bool storage_daemon, int argc,
                char **argv, int *status)
{
    int code;

    cfg->command = storage_daemon ? &daemon_command : &serve_command;
    cfg->storage_daemon = storage_daemon;
    cfg->stop_timeout = STOP_SECONDS;
    cfg->poll_max = POLL_MAX;
    cfg->items = calloc((size_t)argc, sizeof(*cfg->items));
    if (!cfg->items) {
        *status = cli_failed(cfg->command->name, "no memory");
        return -1;
    }
    while ((code = cli_next(cfg->command, argc, argv)) >= 0) {
        if (code == 'V') {
            print_version(storage_daemon);
            *status = cli_finish(cfg->command->name);
            return -1;
        }
        if (code != CLI_ARGUMENT &&
            option_help(cfg, code, option_name(cfg, code), optarg, status)) {
            return -1;
        }
        *status = take_serve_option(cfg, code);
        if (*status != 0) {
            return -1;
        }
    }
    while (optind < argc) { /* after "--" */
        optarg = argv[optind++];
        add_item(cfg, CLI_ARGUMENT);
    }
    *status = code == CLI_HELP ? EXIT_SUCCESS : CLI_USAGE;
    if (code != CLI_END) {
        return -1;
    }
    if (cfg->log_level == 0) {
        /* QEMU's programs say nothing while all is in order. */
        cfg->log_level = storage_daemon || cfg->vm_compat ? TELL_WARNING
                                                          : TELL_INFO;
    }
    if (!cfg->has_mode && cfg->access.has_group) {
        cfg->access.mode = 0660;
    }
    *status = check_config(cfg);
    return *status == 0 ? 0 : -1;
}
