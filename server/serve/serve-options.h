/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_SERVE_SERVE_OPTIONS_H
#define NBDELTA_SERVER_SERVE_SERVE_OPTIONS_H

/* The command line of `nbdelta serve`, and of qemu-storage-daemon. */
#include <stdbool.h>

#include "cli/cli.h"
#include "nbdelta/graph.h"
#include "nbdelta/tell.h"
#include "net/unix-socket.h"

enum serve_code {
    OPT_QMP = CLI_LONG,
    OPT_PIDFILE,
    OPT_ADD_FD,
    OPT_ALLOW_PATH,
    OPT_BLOCKDEV,
    OPT_CHARDEV,
    OPT_DEVICE,
    OPT_DRIVE,
    OPT_DAEMONIZE,
    OPT_EXIT_ON_DISCONNECT,
    OPT_EXIT_WITH_PARENT,
    OPT_EXPORT,
    OPT_FOLLOW,
    OPT_LOG,
    OPT_LOG_LEVEL,
    OPT_MONITOR,
    OPT_NBD_SERVER,
    OPT_OBJECT,
    OPT_OVERLAY,
    OPT_POLL_MAX,
    OPT_PRINT_URI,
    OPT_SOCKET_GROUP,
    OPT_SOCKET_MODE,
    OPT_STOP_TIMEOUT,
    OPT_TLS,
    OPT_TLS_CERTIFICATES,
    OPT_TLS_PSK,
    OPT_TLS_VERIFY_PEER,
    OPT_VM_COMPAT,
};

/* A step that is done in the order of the command line: an option of one of
 * these codes, or an image (CLI_ARGUMENT). */
struct serve_item {
    int code;
    const char *name; /* of the option, NULL: an image */
    const char *arg;
};

struct serve_config {
    const struct cli_command *command;
    bool storage_daemon; /* as QEMU's program of this name */

    /* These hold for all, wherever they stand. */
    const char *socket;
    const char *address;
    const char *port;
    const char *tls; /* off, on, require, or NULL */
    const char *tls_certificates;
    const char *tls_psk;
    bool tls_verify_peer;
    bool read_only;
    const char *format;
    const char *overlay; /* a file, a directory, "temporary", or NULL */
    enum graph_follow follow;
    const char *pidfile;
    const char *log;           /* as for log_to(), or NULL */
    enum tell_level log_level; /* 0 while parsing: not given */
    bool daemonize;
    bool vm_compat;
    bool exit_on_disconnect;
    bool exit_with_parent;
    bool print_uri;
    struct socket_access access; /* to the socket of -U */
    bool has_mode;               /* it was given */
    unsigned stop_timeout;       /* seconds; 0: none */
    unsigned poll_max;           /* microseconds; 0: never */
    bool has_drives;
    bool has_images;
    bool has_server; /* --nbd-server is among the items */

    struct serve_item *items;
    unsigned count;
};

/* 0: go on; otherwise exit, with *status.  @storage_daemon: only the long
 * options that QEMU's has. */
int serve_parse(struct serve_config *cfg, bool storage_daemon, int argc,
                char **argv, int *status);

#endif /* NBDELTA_SERVER_SERVE_SERVE_OPTIONS_H */
