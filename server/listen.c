/* SPDX-License-Identifier: BSD-3-Clause */
#include "listen.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"

/* A socket that nobody listens on any more is removed; 0 when @path is free
 * afterwards. */
static int remove_stale(const char *path, const struct sockaddr_un *sa,
                        struct error **errp)
{
    struct stat st;

    if (lstat(path, &st) < 0) {
        return errno == ENOENT
                   ? 0
                   : error_set(errp, errno, "cannot look at '%s': %s", path,
                               strerror(errno));
    }
    if (!S_ISSOCK(st.st_mode)) {
        return error_set(errp, EEXIST,
                         "'%s' is there already and is no socket", path);
    }
    CLEANUP_CLOSE int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 ||
        connect(fd, (const struct sockaddr *)sa, sizeof(*sa)) == 0 ||
        errno != ECONNREFUSED) {
        return error_set(errp, EADDRINUSE,
                         "another process listens on the socket '%s'", path);
    }
    if (unlink(path) < 0) {
        return error_set(errp, errno, "cannot remove the stale socket '%s': %s",
                         path, strerror(errno));
    }
    return 0;
}

int listen_unix(const char *path, struct error **errp)
{
    struct sockaddr_un sa = { .sun_family = AF_UNIX };
    size_t len = strlen(path);

    if (len == 0 || len >= sizeof(sa.sun_path)) {
        return error_set(errp, EINVAL,
                         "the socket path '%s' is empty or longer than %zu "
                         "bytes",
                         path, sizeof(sa.sun_path) - 1);
    }
    memcpy(sa.sun_path, path, len);
    int r = remove_stale(path, &sa, errp);
    if (r < 0) {
        return r;
    }
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) {
        return error_set(errp, errno, "cannot make a socket: %s",
                         strerror(errno));
    }
    /* The mode of the descriptor becomes that of the file, so that there is
     * no moment at which others can connect. */
    if (fchmod(fd, 0600) < 0 ||
        bind(fd, (const struct sockaddr *)&sa, sizeof(sa)) < 0 ||
        listen(fd, SOMAXCONN) < 0) {
        r = error_set(errp, errno, "cannot listen on the socket '%s': %s",
                      path, strerror(errno));
        (void)close(fd);
        return r;
    }
    return fd;
}
