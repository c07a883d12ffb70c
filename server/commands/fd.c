/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Descriptors that clients of Unix sockets pass (SCM_RIGHTS).
 *
 * What comes with a command is that command's.  getfd gives it a name, which
 * belongs to the session: an address of the type "fd" uses it up.  add-fd puts
 * it into a set of the daemon, where file nodes find it (nbdelta/fdset.h); sets
 * stay when the client goes.  What no command takes is closed when another one
 * comes, or with the session.
 */
#include <errno.h>
#include <unistd.h>

#include "commands/table.h"
#include "daemon.h"
#include "nbdelta/error.h"
#include "nbdelta/fdname.h"
#include "nbdelta/fdset.h"

/* The descriptor that came with the command, the caller's from now on. */
static int take_received(struct qmp_call *call, struct error **errp)
{
    int fd = call->state->received;

    call->state->received = -1;
    return fd >= 0 ? fd
                   : error_set(errp, EINVAL,
                               "No file descriptor supplied via SCM_RIGHTS");
}

static int close_if_failed(int fd, int r)
{
    if (r < 0) {
        (void)close(fd);
    }
    return r;
}

static int cmd_getfd(struct qmp_call *call, struct error **errp)
{
    int fd = take_received(call, errp);

    return fd < 0 ? fd
                  : close_if_failed(fd, fd_names_set(call->state->names,
                                                     qmp_str(call, "fdname"),
                                                     fd, errp));
}

static int cmd_closefd(struct qmp_call *call, struct error **errp)
{
    return fd_names_close(call->state->names, qmp_str(call, "fdname"), errp);
}

static int cmd_add_fd(struct qmp_call *call, struct error **errp)
{
    int64_t id = qmp_int(call, "fdset-id", -1);
    int fd = take_received(call, errp);
    int r = fd;

    if (fd >= 0 && id < 0 && qmp_has(call, "fdset-id")) {
        r = error_set(errp, EINVAL,
                      "Parameter 'fdset-id' expects a non-negative value");
    } else if (fd >= 0) {
        r = fdset_add(call->daemon->graph, id, fd, qmp_str(call, "opaque"), &id,
                      errp);
    }
    if (r < 0) {
        return fd < 0 ? fd : close_if_failed(fd, r);
    }
    call->ret = json_pack("{s:I, s:i}", "fdset-id", (json_int_t)id, "fd", fd);
    return call->ret ? 0 : error_nomem(errp);
}

static int cmd_remove_fd(struct qmp_call *call, struct error **errp)
{
    int64_t id = qmp_int(call, "fdset-id", -1);
    int64_t fd = qmp_int(call, "fd", -1);

    if (qmp_has(call, "fd") && (fd < 0 || fd > INT32_MAX)) {
        return error_set(errp, ENOENT,
                         "File descriptor named 'fdset-id:%lld, fd:%lld' not "
                         "found",
                         (long long)id, (long long)fd);
    }
    return fdset_remove(call->daemon->graph, id, (int)fd, errp);
}

static int cmd_query_fdsets(struct qmp_call *call, struct error **errp)
{
    call->ret = fdset_query(call->daemon->graph);
    return call->ret ? 0 : error_nomem(errp);
}

static const struct qmp_arg name_args[] = {
    QMP_ARG("fdname", STR),
    QMP_LAST,
};

static const struct qmp_arg add_args[] = {
    QMP_OPT("fdset-id", INT),
    QMP_OPT("opaque", STR),
    QMP_LAST,
};

static const struct qmp_arg remove_args[] = {
    QMP_ARG("fdset-id", INT),
    QMP_OPT("fd", INT),
    QMP_LAST,
};

static const struct qmp_arg added_members[] = {
    QMP_ARG("fdset-id", INT),
    QMP_ARG("fd", INT),
    QMP_LAST,
};
static const struct qmp_arg added_type = QMP_ARG("", OBJECT,
                                                 .members = added_members);

static const struct qmp_arg fd_members[] = {
    QMP_ARG("fd", INT),
    QMP_OPT("opaque", STR),
    QMP_LAST,
};
static const struct qmp_arg fdset_members[] = {
    QMP_ARG("fdset-id", INT),
    QMP_ARG("fds", OBJECTS, .members = fd_members),
    QMP_LAST,
};
static const struct qmp_arg fdsets_type = QMP_ARG("", OBJECTS,
                                                  .members = fdset_members);

const struct qmp_command qmp_fd_commands[] = {
    QMP_COMMAND("add-fd", cmd_add_fd, add_args, .ret = &added_type),
    QMP_COMMAND("closefd", cmd_closefd, name_args),
    QMP_COMMAND("getfd", cmd_getfd, name_args),
    QMP_COMMAND("query-fdsets", cmd_query_fdsets, NULL, .ret = &fdsets_type),
    QMP_COMMAND("remove-fd", cmd_remove_fd, remove_args),
    QMP_COMMANDS_END,
};
