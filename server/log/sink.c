/* SPDX-License-Identifier: BSD-3-Clause */
/* Standard error, the journal, syslog, a file: see sink.h. */
#include "log/sink.h"

#include <errno.h>
#include <fcntl.h>
#include <paths.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <syslog.h>
#include <time.h>
#include <unistd.h>

#include "nbdelta/error.h"

#define LINE_MAX 4096

static const char *program = "nbdelta";

static enum { TO_STDERR, TO_JOURNAL, TO_SYSLOG, TO_FILE, TO_NOBODY } to;
static int fd = -1;      /* of a file, or a socket of syslog's */
static const char *path; /* of the file */

/* Is standard error the stream that systemd has made ("device:inode")?  It may
 * have been led elsewhere since. */
bool sink_is_journal(void)
{
    const char *stream = getenv("JOURNAL_STREAM");
    char own[64];
    struct stat st;

    if (!stream || fstat(STDERR_FILENO, &st) < 0) {
        return false;
    }
    (void)snprintf(own, sizeof(own), "%ju:%ju", (uintmax_t)st.st_dev,
                   (uintmax_t)st.st_ino);
    return strcmp(stream, own) == 0;
}

void sink_init(const char *name)
{
    program = name;
    to = sink_is_journal() ? TO_JOURNAL : TO_STDERR;
}

/* O_NONBLOCK: a FIFO that nobody reads is an error, not a wait. */
static int open_file(const char *name)
{
    return open(
        name, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOCTTY | O_NONBLOCK,
        0640);
}

static void close_fd(void)
{
    if (fd >= 0) {
        (void)close(fd);
        fd = -1;
    }
}

int sink_open(const char *where, struct error **errp)
{
    if (strcmp(where, "stderr") == 0) {
        close_fd();
        sink_init(program);
    } else if (strcmp(where, "syslog") == 0) {
        close_fd();
        to = TO_SYSLOG;
    } else if (strcmp(where, "null") == 0) {
        close_fd();
        to = TO_NOBODY;
    } else {
        int file = open_file(where);

        if (file < 0) {
            return error_set(errp, errno, "cannot open the log '%s': %s", where,
                             strerror(errno));
        }
        close_fd();
        fd = file;
        path = where;
        to = TO_FILE;
    }
    return 0;
}

/* The file of this name may be another one by now.  Where none can be made, the
 * old one stays in use. */
static void follow_name(void)
{
    struct stat named, ours;

    if (fstat(fd, &ours) < 0 || !S_ISREG(ours.st_mode) ||
        (stat(path, &named) == 0 && named.st_dev == ours.st_dev &&
         named.st_ino == ours.st_ino)) {
        return;
    }
    int file = open_file(path);
    if (file >= 0) {
        close_fd();
        fd = file;
    }
}

/* A part of a line is a line that was written: its rest would not help. */
static bool write_to(int out, const char *line, size_t len)
{
    struct pollfd p = {.fd = out, .events = POLLOUT};

    return poll(&p, 1, 0) == 1 && (p.revents & POLLOUT) &&
           write(out, line, len) > 0;
}

static bool write_plain(int out, const char *text)
{
    char line[LINE_MAX];
    char when[32] = "";
    time_t now = time(NULL);
    struct tm tm;

    if (gmtime_r(&now, &tm)) {
        (void)strftime(when, sizeof(when), "%FT%TZ", &tm);
    }
    int n = snprintf(line, sizeof(line) - 1, "%s: %s %s", program, when, text);
    size_t len = n < 0 ? 0 : (size_t)n;
    len = len < sizeof(line) - 1 ? len : sizeof(line) - 2;
    line[len++] = '\n';
    return write_to(out, line, len);
}

static bool write_journal(enum tell_level level, const char *text)
{
    char line[LINE_MAX];
    int n = snprintf(line, sizeof(line), "<%d>%s\n", (int)level, text);

    return n > 0 && n < (int)sizeof(line) &&
           write_to(STDERR_FILENO, line, (size_t)n);
}

/* A daemon of syslog that is not there now may be there for the next line. */
static bool connect_syslog(void)
{
    static const struct sockaddr_un log = {.sun_family = AF_UNIX,
                                           .sun_path = _PATH_LOG};

    if (fd < 0) {
        fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        if (fd >= 0 &&
            connect(fd, (const struct sockaddr *)&log, sizeof(log)) < 0) {
            close_fd();
        }
    }
    return fd >= 0;
}

/* syslog(3) would wait for a daemon that does not read. */
static bool write_syslog(enum tell_level level, const char *text)
{
    char line[LINE_MAX];
    char when[32] = "";
    time_t now = time(NULL);
    struct tm tm;

    if (localtime_r(&now, &tm)) {
        (void)strftime(when, sizeof(when), "%b %e %T", &tm);
    }
    int n = snprintf(line, sizeof(line), "<%d>%s %s[%d]: %s",
                     LOG_DAEMON | (int)level, when, program, (int)getpid(),
                     text);
    size_t len = n < 0                   ? 0
                 : n < (int)sizeof(line) ? (size_t)n
                                         : sizeof(line) - 1;

    for (int tries = 0; tries < 2 && connect_syslog(); tries++) {
        if (send(fd, line, len, MSG_NOSIGNAL) == (ssize_t)len) {
            return true;
        }
        if (errno == EAGAIN || errno == EMSGSIZE) {
            return false;
        }
        close_fd(); /* it has begun anew */
    }
    return false;
}

bool sink_write(enum tell_level level, const char *text)
{
    switch (to) {
    case TO_JOURNAL:
        return write_journal(level, text);
    case TO_SYSLOG:
        return write_syslog(level, text);
    case TO_FILE:
        follow_name();
        return write_plain(fd, text);
    case TO_NOBODY:
        return true;
    case TO_STDERR:
        break;
    }
    return write_plain(STDERR_FILENO, text);
}
