/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Where is QEMU's NBD server?
 *
 * QEMU has one, and no command tells its address.  The kernel does: the sockets
 * that the process listens on are among its descriptors (/proc/PID/fd) and in
 * the tables of its network (/proc/PID/net).  What greets with NBDMAGIC there
 * is the server.
 */
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "net/address.h"
#include "source/qemu-priv.h"

#define FDS_MAX  4096
#define MAGIC    "NBDMAGIC"
#define GREET_MS 1000

struct sockets {
    uint64_t inodes[FDS_MAX];
    size_t count;
};

/* --- What the kernel tells. --- */

/* Its numbers fit.  NOLINTBEGIN(cert-err34-c) */

static int list_sockets(pid_t pid, struct sockets *s)
{
    char path[64];
    const struct dirent *e;

    s->count = 0;
    (void)snprintf(path, sizeof(path), "/proc/%ld/fd", (long)pid);
    DIR *dir = opendir(path);
    if (!dir) {
        return -errno;
    }
    while ((e = readdir(dir)) != NULL && s->count < FDS_MAX) {
        char link[64];
        ssize_t n = readlinkat(dirfd(dir), e->d_name, link, sizeof(link) - 1);

        link[n > 0 ? n : 0] = '\0';
        if (sscanf(link, "socket:[%" SCNu64 "]", &s->inodes[s->count]) == 1) {
            s->count++;
        }
    }
    (void)closedir(dir);
    return 0;
}

static bool has_inode(const struct sockets *s, uint64_t inode)
{
    for (size_t i = 0; i < s->count; i++) {
        if (s->inodes[i] == inode) {
            return true;
        }
    }
    return false;
}

/* The address of a line of a table; NULL: it is not listening, or no address.
 * A new reference. */
typedef json_t *parse_line_fn(char *line, uint64_t *inode);

#define SO_ACCEPTS 0x10000U

static json_t *parse_unix(char *line, uint64_t *inode)
{
    unsigned flags;
    int at = 0;

    if (sscanf(line, "%*[^:]: %*x %*x %x %*x %*x %" SCNu64 " %n", &flags, inode,
               &at) < 2 ||
        at == 0 || !(flags & SO_ACCEPTS) || line[at] != '/') {
        return NULL;
    }
    line[strcspn(line, "\n")] = '\0';
    return json_pack("{s:s, s:s}", "type", "unix", "path", line + at);
}

static json_t *inet_address(const char *host, unsigned port)
{
    char text[8];

    (void)snprintf(text, sizeof(text), "%u", port);
    return json_pack("{s:s, s:s, s:s}", "type", "inet", "host", host, "port",
                     text);
}

#define TCP_STATE_LISTEN 0x0aU

/* "  0: 0100007F:2A45 00000000:0000 0A 00000000:00000000 00:00000000 00000000
 * UID TIMEOUT INODE ...": words in the order of this machine's bytes. */
static json_t *parse_tcp(char *line, uint64_t *inode)
{
    struct in_addr a;
    char host[INET_ADDRSTRLEN];
    unsigned port;
    unsigned state;

    if (sscanf(line,
               " %*u: %8x:%x %*8x:%*x %x %*x:%*x %*x:%*x %*x %*u %*u "
               "%" SCNu64,
               &a.s_addr, &port, &state, inode) != 4 ||
        state != TCP_STATE_LISTEN) {
        return NULL;
    }
    return a.s_addr == INADDR_ANY ? inet_address("127.0.0.1", port)
           : inet_ntop(AF_INET, &a, host, sizeof(host))
               ? inet_address(host, port)
               : NULL;
}

static json_t *parse_tcp6(char *line, uint64_t *inode)
{
    struct in6_addr a;
    uint32_t word[4];
    char host[INET6_ADDRSTRLEN];
    unsigned port;
    unsigned state;

    if (sscanf(line,
               " %*u: %8x%8x%8x%8x:%x %*32[0-9A-F]:%*x %x %*x:%*x "
               "%*x:%*x %*x %*u %*u %" SCNu64,
               &word[0], &word[1], &word[2], &word[3], &port, &state,
               inode) != 7 ||
        state != TCP_STATE_LISTEN) {
        return NULL;
    }
    memcpy(&a, word, sizeof(a));
    return IN6_IS_ADDR_UNSPECIFIED(&a) ? inet_address("::1", port)
           : inet_ntop(AF_INET6, &a, host, sizeof(host))
               ? inet_address(host, port)
               : NULL;
}

/* NOLINTEND(cert-err34-c) */

typedef bool wanted_fn(const json_t *address, void *opaque);

/* The first address of the table @name that @wanted takes; a new reference. */
static json_t *search_table(pid_t pid, const struct sockets *s,
                            const char *name, parse_line_fn *parse,
                            wanted_fn *wanted, void *opaque)
{
    char path[64];
    char line[512];
    json_t *found = NULL;

    (void)snprintf(path, sizeof(path), "/proc/%ld/net/%s", (long)pid, name);
    FILE *f = fopen(path, "re");
    while (f && !found && fgets(line, sizeof(line), f)) {
        uint64_t inode = 0;
        json_t *address = parse(line, &inode);

        if (address && has_inode(s, inode) && wanted(address, opaque)) {
            found = address;
        } else {
            json_decref(address);
        }
    }
    if (f) {
        (void)fclose(f);
    }
    return found;
}

/* --- Questions --- */

static bool is_own(const json_t *address, void *opaque)
{
    return strstr(qemu_text(address, "path"), opaque) != NULL;
}

bool qemu_has_own_server(pid_t pid, const char *id)
{
    CLEANUP_FREE struct sockets *s = malloc(sizeof(*s));
    CLEANUP_FREE char *part = NULL;

    if (asprintf(&part, "/nbdelta-%s.", id) < 0) {
        part = NULL;
    }
    if (!s || !part || list_sockets(pid, s) < 0) {
        return false;
    }
    CLEANUP_JSON json_t *own = search_table(pid, s, "unix", parse_unix, is_own,
                                            part);
    return own != NULL;
}

static bool greets(const json_t *address, void *opaque)
{
    char buf[sizeof(MAGIC)] = "";
    CLEANUP_CLOSE int fd = -1;
    size_t got = 0;

    (void)opaque;
    if (address_connect(address, &fd, NULL) < 0) {
        return false;
    }
    while (got < strlen(MAGIC)) {
        struct pollfd p = {.fd = fd, .events = POLLIN};
        ssize_t n = poll(&p, 1, GREET_MS) > 0
                        ? recv(fd, buf + got, strlen(MAGIC) - got, MSG_DONTWAIT)
                        : 0;
        if (n <= 0) {
            return false;
        }
        got += (size_t)n;
    }
    return memcmp(buf, MAGIC, strlen(MAGIC)) == 0;
}

int qemu_find_server(pid_t pid, json_t **address, struct error **errp)
{
    static const struct {
        const char *name;
        parse_line_fn *parse;
    } tables[] = {
        {"unix", parse_unix}, {"tcp", parse_tcp}, {"tcp6", parse_tcp6}};
    CLEANUP_FREE struct sockets *s = malloc(sizeof(*s));
    json_t *server = NULL;

    if (!s) {
        return error_nomem(errp);
    }
    int r = list_sockets(pid, s);
    for (size_t i = 0; r == 0 && !server && i < 3; i++) {
        server = search_table(pid, s, tables[i].name, tables[i].parse, greets,
                              NULL);
    }
    if (!server) {
        return error_set(errp, ENOENT,
                         "QEMU runs an NBD server already, and where it is "
                         "cannot be found out%s%s: give its URI",
                         r < 0 ? ": " : "", r < 0 ? strerror(-r) : "");
    }
    *address = json_pack("{s:o}", "server", server);
    return *address ? 0 : error_nomem(errp);
}
