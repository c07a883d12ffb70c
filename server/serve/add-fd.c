/* SPDX-License-Identifier: BSD-3-Clause */
/* --add-fd: see add-fd.h. */
#include "serve/add-fd.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#include "keyval.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/fdset.h"

static const struct qmp_arg add_fd_args[] = {
    QMP_ARG("fd", INT),
    QMP_ARG("set", INT),
    QMP_OPT("opaque", STR),
    QMP_LAST,
};

/* A close-on-exec one was not meant for us, or is in use here already. */
static int check_inherited(json_int_t fd, struct error **errp)
{
    if (fd >= 0 && fd <= STDERR_FILENO) {
        return error_set(errp, EINVAL, "fd cannot be a standard I/O stream");
    }
    int flags = fd < 0 || fd > INT32_MAX ? -1 : fcntl((int)fd, F_GETFD);
    return flags < 0 || (flags & FD_CLOEXEC)
               ? error_set(errp, EBADF, "fd is not valid or already in use")
               : 0;
}

int add_fd_option(struct graph *g, const char *text, struct error **errp)
{
    CLEANUP_JSON json_t *args = NULL;
    int64_t id;
    int r = keyval_parse(text, NULL, add_fd_args, &args, errp);

    if (r < 0) {
        return r;
    }
    json_int_t fd = json_integer_value(json_object_get(args, "fd"));
    json_int_t set = json_integer_value(json_object_get(args, "set"));
    if ((r = check_inherited(fd, errp)) < 0) {
        return r;
    }
    if (set < 0) {
        return error_set(errp, EINVAL, "set ID must be a non-negative integer");
    }
    r = fcntl((int)fd, F_SETFD, FD_CLOEXEC);
    return r < 0 ? error_set(errp, errno, "descriptor %lld: %s", (long long)fd,
                             strerror(errno))
                 : fdset_add(g, set, (int)fd, member_str(args, "opaque"), &id,
                             errp);
}
