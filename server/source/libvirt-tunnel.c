/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The user's ssh carries a socket: see libvirt-tunnel.h.
 *
 *   opener, closer           keeper (a thread)              ssh
 *   start the keeper ------> start ssh -------------------> binds LOCAL
 *   wait for LOCAL           look after it, start it anew
 *   kick ------------------> SIGTERM, wait, SIGKILL ------> ends
 *
 * ssh dies with the keeper (PR_SET_PDEATHSIG), so also after a kill -9.  Ctrl-C
 * of a terminal does not reach it: what was begun at the other side is to end
 * in order.
 */
#include "source/libvirt-tunnel.h"

#include <errno.h>
#include <fcntl.h>
#include <libxml/uri.h>
#include <libxml/xmlmemory.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/kick.h"
#include "nbdelta/thread.h"

#define WORDS_MAX 40
#define LOOK_MS   20
#define AGAIN_MS  500  /* between two tries of ssh */
#define END_MS    2000 /* so long ssh may take to end */

struct libvirt_tunnel {
    char *words[WORDS_MAX]; /* of the command; the last one is NULL */
    size_t count;
    char *local;
    pthread_t keeper;
    int kick; /* it is to end */

    mutex_t lock;
    int failed GUARDED_BY(lock); /* the wait status of the first ssh, which has
                                    ended; -1: it has not */
};

/* --- The command --- */

static bool add_word(struct libvirt_tunnel *t, const char *word)
{
    if (!word || t->count + 1 == WORDS_MAX) {
        return false;
    }
    t->words[t->count] = strdup(word);
    return t->words[t->count++] != NULL;
}

static bool add_pair(struct libvirt_tunnel *t, const char *option,
                     const char *value)
{
    return add_word(t, option) && add_word(t, value);
}

static bool add_text(struct libvirt_tunnel *t, const char *option,
                     const char *before, const char *value)
{
    CLEANUP_FREE char *text = NULL;

    if (asprintf(&text, "%s%s", before, value) < 0) {
        text = NULL;
        return false;
    }
    return add_pair(t, option, text);
}

/* The value of @key in "keyfile=/k&no_verify=1", without its escapes; NULL: it
 * is not there, or no memory. */
static char *query_value(const char *query, const char *key)
{
    size_t len = strlen(key);

    while (query && *query) {
        size_t piece = strcspn(query, "&;");

        if (piece > len && strncmp(query, key, len) == 0 && query[len] == '=') {
            char *raw = strndup(query + len + 1, piece - len - 1);
            char *plain = raw ? xmlURIUnescapeString(raw, 0, NULL) : NULL;
            char *copy = plain ? strdup(plain) : NULL;

            xmlFree(plain);
            free(raw);
            return copy;
        }
        query += piece + (query[piece] != '\0');
    }
    return NULL;
}

static bool add_options(struct libvirt_tunnel *t, const xmlURI *u)
{
    CLEANUP_FREE char *key = query_value(u->query_raw, "keyfile");
    CLEANUP_FREE char *known = query_value(u->query_raw, "known_hosts");
    CLEANUP_FREE char *careless = query_value(u->query_raw, "no_verify");
    char port[16];

    (void)snprintf(port, sizeof(port), "%d", u->port);
    return (!key || add_pair(t, "-i", key)) &&
           (!known || add_text(t, "-o", "UserKnownHostsFile=", known)) &&
           (!careless || strcmp(careless, "0") == 0 ||
            add_pair(t, "-o", "StrictHostKeyChecking=no")) &&
           (u->port <= 0 || add_pair(t, "-p", port)) &&
           (!u->user || add_pair(t, "-l", u->user));
}

/* ssh does not ask where nobody can answer; and no other ssh of the user's
 * carries this, as it would go on after our end. */
static bool add_fixed(struct libvirt_tunnel *t)
{
    static const char *const always[] = {
        "ExitOnForwardFailure=yes", "ServerAliveInterval=5",
        "ServerAliveCountMax=4",    "ControlMaster=no",
        "ControlPath=none",         "StreamLocalBindMask=0177",
        "PermitLocalCommand=no",    "ForkAfterAuthentication=no",
    };
    bool good = add_word(t, "-N") && add_word(t, "-T") && add_word(t, "-a") &&
                add_word(t, "-x");

    for (size_t i = 0; good && i < sizeof(always) / sizeof(always[0]); i++) {
        good = add_pair(t, "-o", always[i]);
    }
    return good && (isatty(STDIN_FILENO) || add_pair(t, "-o", "BatchMode=yes"));
}

/* "[::1]" is an address for URIs only. */
static char *host_of(const xmlURI *u)
{
    size_t len = strlen(u->server);

    return u->server[0] == '[' && u->server[len - 1] == ']'
               ? strndup(u->server + 1, len - 2)
               : strdup(u->server);
}

static int make_command(struct libvirt_tunnel *t, const xmlURI *u,
                        const char *remote, struct error **errp)
{
    CLEANUP_FREE char *program = query_value(u->query_raw, "command");
    CLEANUP_FREE char *sockets = NULL;
    CLEANUP_FREE char *host = host_of(u);

    if (asprintf(&sockets, "%s:%s", t->local, remote) < 0) {
        sockets = NULL;
        return error_nomem(errp);
    }
    return add_word(t, program ? program : "ssh") && add_fixed(t) &&
                   add_options(t, u) && add_pair(t, "-L", sockets) &&
                   add_pair(t, "--", host)
               ? 0
               : error_nomem(errp);
}

static int check_uri(const xmlURI *u, const struct libvirt_tunnel *t,
                     const char *uri, const char *remote, struct error **errp)
{
    if (!u || !u->scheme || !strstr(u->scheme, "ssh") || !u->server ||
        !*u->server) {
        return error_set(errp, EINVAL,
                         "a tunnel by ssh needs a connection URI such as "
                         "qemu+ssh://HOST/system, and this is '%s'",
                         uri);
    }
    return strpbrk(t->local, ":%") || strpbrk(remote, ":%")
               ? error_set(errp, EINVAL,
                           "ssh cannot carry '%s' to '%s': no path may have a "
                           "':' or '%%'",
                           t->local, remote)
               : 0;
}

/* --- The keeper --- */

/* In the child of fork(): nothing but system calls. */
static void become_ssh(const struct libvirt_tunnel *t, pid_t parent)
{
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    sigset_t held;

    (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent || null < 0) {
        _exit(127);
    }
    (void)dup2(null, STDIN_FILENO);
    (void)dup2(null, STDOUT_FILENO);
    (void)sigemptyset(&held);
    (void)sigaddset(&held, SIGINT);
    (void)sigaddset(&held, SIGHUP);
    (void)sigprocmask(SIG_SETMASK, &held, NULL);
    (void)execvp(t->words[0], t->words);
    _exit(127);
}

static pid_t start_ssh(const struct libvirt_tunnel *t)
{
    pid_t parent = getpid();

    (void)unlink(t->local); /* of the one before */
    pid_t pid = fork();
    if (pid == 0) {
        become_ssh(t, parent);
    }
    return pid;
}

/* true: the tunnel is to end. */
static bool wait_kick(const struct libvirt_tunnel *t, int ms)
{
    struct pollfd p = {.fd = t->kick, .events = POLLIN};

    return poll(&p, 1, ms) > 0;
}

static void end_ssh(pid_t pid)
{
    int status;

    (void)kill(pid, SIGTERM);
    for (int ms = 0; ms < END_MS; ms += LOOK_MS) {
        const struct timespec nap = {.tv_nsec = LOOK_MS * 1000000L};

        if (waitpid(pid, &status, WNOHANG) != 0) {
            return;
        }
        (void)nanosleep(&nap, NULL);
    }
    (void)kill(pid, SIGKILL);
    (void)waitpid(pid, &status, 0);
}

static void note_end(struct libvirt_tunnel *t, int status)
{
    mutex_lock(&t->lock);
    t->failed = t->failed < 0 ? status : t->failed;
    mutex_unlock(&t->lock);
}

static void *keeper(void *opaque)
{
    struct libvirt_tunnel *t = opaque;
    bool end = false;

    while (!end) {
        pid_t pid = start_ssh(t);
        int status = 0;

        while (pid > 0 && !end && waitpid(pid, &status, WNOHANG) == 0) {
            end = wait_kick(t, LOOK_MS);
        }
        if (end && pid > 0) {
            end_ssh(pid);
        } else {
            note_end(t, status);
            end = wait_kick(t, AGAIN_MS);
        }
    }
    return NULL;
}

/* --- Open and close --- */

static void free_tunnel(struct libvirt_tunnel *t)
{
    for (size_t i = 0; i < t->count; i++) {
        free(t->words[i]);
    }
    if (t->kick >= 0) {
        (void)close(t->kick);
    }
    if (t->local) {
        (void)unlink(t->local);
    }
    free(t->local);
    mutex_destroy(&t->lock);
    free(t);
}

void libvirt_tunnel_close(struct libvirt_tunnel *t)
{
    if (t) {
        kick_raise(t->kick);
        thread_join(t->keeper);
        free_tunnel(t);
    }
}

static int first_status(struct libvirt_tunnel *t)
{
    mutex_lock(&t->lock);
    int status = t->failed;
    mutex_unlock(&t->lock);
    return status;
}

static int wait_for_local(struct libvirt_tunnel *t, unsigned limit_ms,
                          int stop_fd, struct error **errp)
{
    uint64_t end = now_ns() + (uint64_t)limit_ms * 1000000;
    struct pollfd p = {.fd = stop_fd, .events = POLLIN};
    struct stat st;

    while (lstat(t->local, &st) < 0) {
        int status = first_status(t);

        if (status >= 0) {
            return error_set(errp, ECONNREFUSED,
                             "ssh has ended with status %d: no tunnel",
                             WIFEXITED(status) ? WEXITSTATUS(status) : 255);
        }
        if (now_ns() > end) {
            return error_set(errp, ETIMEDOUT,
                             "ssh has made no tunnel within %u s",
                             limit_ms / 1000);
        }
        if (poll(&p, 1, LOOK_MS) > 0) {
            return error_set(errp, ECANCELED, "interrupted");
        }
    }
    return 0;
}

static int prepare(struct libvirt_tunnel *t, const char *uri, const char *local,
                   const char *remote, struct error **errp)
{
    t->kick = kick_new();
    t->local = strdup(local);
    if (t->kick < 0 || !t->local) {
        return error_nomem(errp);
    }
    xmlURI *u = xmlParseURI(uri);
    int r = check_uri(u, t, uri, remote, errp);
    r = r < 0 ? r : make_command(t, u, remote, errp);
    xmlFreeURI(u);
    return r;
}

int libvirt_tunnel_open(const char *uri, const char *local, const char *remote,
                        unsigned limit_ms, int stop_fd,
                        struct libvirt_tunnel **tp, struct error **errp)
{
    struct libvirt_tunnel *t = calloc(1, sizeof(*t));

    if (!t) {
        return error_nomem(errp);
    }
    mutex_init(&t->lock, LOCK_PROGRESS, NULL);
    t->failed = -1;
    int r = prepare(t, uri, local, remote, errp);
    if (r == 0) {
        r = thread_start(&t->keeper, "ssh", keeper, t);
        r = r < 0 ? error_set(errp, -r, "cannot start a thread") : 0;
    }
    if (r < 0) {
        free_tunnel(t);
        return r;
    }
    r = wait_for_local(t, limit_ms, stop_fd, errp);
    if (r < 0) {
        libvirt_tunnel_close(t);
        return r;
    }
    *tp = t;
    return 0;
}
