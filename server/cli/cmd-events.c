/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * `nbdelta events`: what a monitor tells unasked, a line of JSON each.
 *
 * Three things can happen at any time: a message comes, a signal comes, the
 * reader of the output goes.  So nothing here waits for one of them alone, and
 * output is written in pieces that a pipe takes without blocking.  Nothing is
 * kept but the message that is printed.
 */
#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "args.h"
#include "cli/cli.h"
#include "cli/commands.h"
#include "cli/nearest.h"
#include "client/qmp-client.h"
#include "client/schema.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/thread.h"
#include "qmp/parse.h"

#define TIMED_OUT 3 /* the exit status: --until's event has not come */

#define MS          UINT64_C(1000000)
#define CONNECT_MS  2000     /* with any --timeout */
#define SECONDS_MAX 31536000 /* of --timeout: a year */

struct watch {
    struct qmp_client *qmp;
    const char *until; /* or NULL */
    uint64_t deadline; /* ns; UINT64_MAX: none */
    bool came;         /* the event @until */
    bool reader_gone;
    bool late; /* the deadline is over */
};

/* --- Waiting. --- */

static int ms_left(const struct watch *w)
{
    uint64_t now = now_ns();

    return w->deadline == UINT64_MAX ? -1
           : now >= w->deadline
               ? 0
               : (int)min_u64(div_up(w->deadline - now, MS), INT_MAX);
}

/*
 * Wait until @fd is ready for @events, at most @timeout ms.  1: it is; 0: it is
 * not; -EINTR: a signal has come; -EPIPE: the reader of our output has gone; or
 * another error.
 */
static int wait_for(struct watch *w, int fd, short events, int timeout,
                    struct error **errp)
{
    struct pollfd p[3] = {{.fd = fd, .events = events},
                          {.fd = w->qmp->signal_fd, .events = POLLIN},
                          {.fd = STDOUT_FILENO, .events = 0}};
    struct signalfd_siginfo info;
    int r;

    do {
        r = poll(p, 3, timeout);
    } while (r < 0 && errno == EINTR);
    if (r < 0) {
        return error_set(errp, errno, "cannot wait: %s", strerror(errno));
    }
    if (p[1].revents &&
        read(w->qmp->signal_fd, &info, sizeof(info)) == sizeof(info)) {
        w->qmp->signo = (int)info.ssi_signo;
        return -EINTR;
    }
    if (p[2].revents & (POLLERR | POLLHUP)) {
        w->reader_gone = true;
        return -EPIPE;
    }
    return p[0].revents != 0;
}

/* --- Output. --- */

/* POLLOUT means that a pipe has room for so many bytes. */
#define PIECE 4096

/* A signal that comes in the middle of a line ends it only if the rest would
 * have to wait for the reader. */
static int write_all(struct watch *w, const char *text, size_t len,
                     struct error **errp)
{
    int stopped = 0;

    while (len > 0) {
        int r = wait_for(w, STDOUT_FILENO, POLLOUT, stopped ? 0 : ms_left(w),
                         errp);

        if (r == -EINTR) {
            stopped = r;
            continue;
        }
        if (r == 0 && stopped) {
            return stopped;
        }
        if (r == 0) {
            return error_set(errp, ETIMEDOUT, "nobody takes the output");
        }
        if (r < 0) {
            return r;
        }
        ssize_t n = write(STDOUT_FILENO, text, min_u64(len, PIECE));
        if (n < 0 && errno == EPIPE) {
            w->reader_gone = true;
            return -EPIPE;
        }
        if (n < 0 && errno != EINTR && errno != EAGAIN) {
            return error_set(errp, errno, "cannot write the output: %s",
                             strerror(errno));
        }
        if (n > 0) {
            text += n;
            len -= (size_t)n;
        }
    }
    return stopped;
}

/* Messages that are no events are replies that nobody waits for. */
static int print_event(struct watch *w, const json_t *message,
                       struct error **errp)
{
    const char *name = member_str(message, "event");
    CLEANUP_FREE char *line = NULL;
    size_t len = 0;

    if (!name) {
        return 0;
    }
    line = cli_json_line(message, &len);
    if (!line) {
        return error_nomem(errp);
    }
    int r = write_all(w, line, len, errp);
    w->came |= r == 0 && w->until && strcmp(name, w->until) == 0;
    return r;
}

/* --- The events. --- */

static int print_kept(struct watch *w, struct error **errp)
{
    size_t i;
    json_t *event;
    int r = 0;

    json_array_foreach (w->qmp->events, i, event) {
        r = r < 0 || w->came ? r : print_event(w, event, errp);
    }
    (void)json_array_clear(w->qmp->events);
    return r;
}

/* A signal is looked at before each message: they may come without end. */
static int follow(struct watch *w, struct error **errp)
{
    int r = print_kept(w, errp);

    while (r >= 0 && !w->came && !w->late) {
        CLEANUP_JSON json_t *message = NULL;
        bool more = json_array_size(w->qmp->inbox) > 0 || w->qmp->garbage;
        int left = ms_left(w);

        r = wait_for(w, w->qmp->fd, POLLIN, more ? 0 : left, errp);
        if (r < 0) {
            break;
        }
        w->late = left == 0;
        if (r > 0 || more) {
            r = qmp_client_receive(w->qmp, 0, &message, errp);
        }
        if (r > 0) {
            r = print_event(w, message, errp);
        }
    }
    return r;
}

/* --- From the beginning to the end. --- */

/* An event that the monitor never sends would be waited for for ever.  A
 * monitor that does not tell its schema (a role may have none) is believed. */
static int check_until(struct watch *w, struct error **errp)
{
    struct schema s = SCHEMA_INIT;
    struct nearest near;
    const char *key;
    json_t *entry;
    int r = schema_ask(&s, w->qmp, errp);

    if (r == -ENOTSUP) {
        error_free(*errp);
        *errp = NULL;
        r = 0;
    } else if (r == 0 && !schema_find(&s, w->until, "event")) {
        nearest_begin(&near, w->until);
        json_object_foreach (s.entries, key, entry) {
            if (schema_find(&s, key, "event")) {
                nearest_try(&near, key);
            }
        }
        r = error_set(errp, ENOENT, "the monitor has no event '%s'%s%s%s",
                      w->until, near.best[0] ? "; is '" : "", near.best,
                      near.best[0] ? "' meant?" : "");
    }
    schema_free(&s);
    return r;
}

static int exit_status(const struct watch *w, int r, const struct error *err)
{
    if (w->came) {
        return EXIT_SUCCESS;
    }
    if (w->reader_gone) {
        return CLI_INTERRUPTED;
    }
    if (r == -EINTR) {
        (void)cli_failed("events", "interrupted (%s)",
                         strsignal(w->qmp->signo));
        return CLI_INTERRUPTED;
    }
    if (r < 0 && !w->late) {
        return cli_error("events", err);
    }
    if (w->until) {
        (void)cli_failed("events", "'%s' has not come", w->until);
        return TIMED_OUT;
    }
    return EXIT_SUCCESS;
}

/* Signals end the process as they always do until there is something to
 * watch. */
static int connect_to(struct watch *w, const char *socket, struct error **errp)
{
    CLEANUP_JSON json_t *addr = json_pack("{s:s, s:s}", "type", "unix", "path",
                                          socket);
    int left = ms_left(w);

    if (!addr) {
        return error_set(errp, EINVAL, "'%s' is no name of a socket", socket);
    }
    w->qmp->limits = &qmp_limits_known;
    w->qmp->limit_ms = left < 0 || left > CONNECT_MS ? left : CONNECT_MS;
    int r = qmp_client_connect(w->qmp, addr, NULL, NULL, w->qmp->limit_ms, NULL,
                               errp);
    return r < 0 ? r : qmp_client_mind(w->qmp, errp);
}

static int run(struct watch *w, const char *socket)
{
    CLEANUP_ERROR struct error *err = NULL;
    struct qmp_client c = QMP_CLIENT_INIT;

    w->qmp = &c;
    int r = connect_to(w, socket, &err);
    r = r < 0 || !w->until ? r : check_until(w, &err);
    r = r < 0 ? r : follow(w, &err);
    int status = exit_status(w, r, err);
    qmp_client_close(&c);
    w->qmp = NULL;
    return status;
}

/* --- The command line. --- */

enum {
    OPT_UNTIL = CLI_LONG,
    OPT_TIMEOUT,
};

static const struct cli_option options[] = {
    {"until", OPT_UNTIL, "EVENT", "end when this event has come"},
    {"timeout", OPT_TIMEOUT, "SECONDS", "end after so many seconds"},
    {NULL, 0, NULL, NULL},
};

static const struct cli_command command_line = {
    .name = "events",
    .usage = "SOCKET [--until EVENT] [--timeout SECONDS]",
    .about =
        "Print the events of a QMP monitor, one line of JSON each, as they "
        "come.\n"
        "Exit status 3: the event of --until has not come in time.\n",
    .options = options,
    .operands = "SOCKET",
};

/* 0, or CLI_USAGE. */
static int set_timeout(struct watch *w, const char *text)
{
    char *end;
    double s = strtod(text, &end);

    if (end == text || *end != '\0' || !(s >= 0 && s <= SECONDS_MAX)) {
        return cli_usage(&command_line,
                         "--timeout must be 0 to %d seconds, not '%s'",
                         SECONDS_MAX, text);
    }
    w->deadline = now_ns() + (uint64_t)(s * 1000) * MS;
    return 0;
}

int cmd_events(int argc, char **argv)
{
    struct watch w = {.deadline = UINT64_MAX};
    int code;

    while ((code = cli_next(&command_line, argc, argv)) != CLI_END) {
        if (code < 0) {
            return code == CLI_HELP ? 0 : CLI_USAGE;
        }
        if (code == OPT_UNTIL) {
            w.until = optarg;
        } else if (set_timeout(&w, optarg) != 0) {
            return CLI_USAGE;
        }
    }
    if (argc - optind != 1) {
        return cli_usage(&command_line, "one socket is needed");
    }
    (void)signal(SIGPIPE, SIG_IGN);
    return run(&w, argv[optind]);
}
