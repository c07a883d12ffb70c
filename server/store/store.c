/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A backup directory is opened, made and locked: see store.h.
 *
 *     DIR -- lock (flock) -- nbdelta.json -- manifests
 *
 * nbdelta.json comes last when a directory is made, so one without it, and
 * with nothing else in it, is made anew.
 */
#include "store/store.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "store/store-priv.h"

#define CONFIG     "nbdelta.json"
#define CONFIG_MAX (64 * KiB)
#define LOCK       "lock"
#define ID_BYTES   8

const char *store_path(const struct store *s)
{
    return s->path;
}

const char *store_id(const struct store *s)
{
    return s->id;
}

int store_dir(const struct store *s)
{
    return s->dir;
}

const json_t *store_options(const struct store *s)
{
    return s->options;
}

int store_check_writable(const struct store *s, struct error **errp)
{
    return s->writable ? 0
                       : error_set(errp, EPERM,
                                   "'%s' was opened for reading only", s->path);
}

int store_put_file(const struct store *s, const char *name, const void *bytes,
                   size_t length, struct error **errp)
{
    return dir_put(s->dir, name, bytes, length, errp);
}

int store_get_file(const struct store *s, const char *name, size_t max,
                   char **bytes, size_t *length, struct error **errp)
{
    return dir_get(s->dir, name, max, bytes, length, errp);
}

/* --- The lock --- */

/* What DIR/lock says: a line of text, or "". */
static void read_owner(int fd, char *text, size_t max)
{
    ssize_t n = pread(fd, text, max - 1, 0);

    text[n < 0 ? 0 : n] = '\0';
    text[strcspn(text, "\n")] = '\0';
}

/* It is for people: that there is no room for it is no error. */
static void write_owner(int fd, const char *command)
{
    char text[200];
    char since[POINT_NAME_MAX];
    char shown[POINT_SHOWN_MAX] = "?";

    if (point_name_make(time(NULL), NULL, since) == 0) {
        point_name_show(since, shown);
    }
    int n = snprintf(text, sizeof(text), "%.100s (process %d, since %s)\n",
                     command, (int)getpid(), shown);
    if (ftruncate(fd, 0) == 0 && n > 0) {
        (void)!pwrite(fd, text, (size_t)n, 0);
    }
}

static int lock_store(struct store *s, const char *command, struct error **errp)
{
    char owner[200];
    struct stat st;
    CLEANUP_CLOSE int fd =
        openat(s->dir, LOCK,
               O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0600);

    if (fd < 0 || fstat(fd, &st) < 0) {
        return error_set(errp, errno, "cannot open '%s/" LOCK "': %s", s->path,
                         strerror(errno));
    }
    if (!S_ISREG(st.st_mode)) {
        return error_set(errp, EINVAL, "'%s/" LOCK "' is not a regular file",
                         s->path);
    }
    if (flock(fd, LOCK_EX | LOCK_NB) < 0) {
        if (errno != EWOULDBLOCK) {
            return error_set(errp, errno, "cannot lock '%s': %s", s->path,
                             strerror(errno));
        }
        read_owner(fd, owner, sizeof(owner));
        return error_set(errp, EBUSY, "'%s' is in use by %s", s->path,
                         owner[0] ? owner : "another process");
    }
    write_owner(fd, command);
    s->lock = fd;
    fd = -1;
    return 0;
}

/* --- nbdelta.json --- */

static int write_config(const struct store *s, const json_t *options,
                        struct error **errp)
{
    CLEANUP_JSON json_t *j = json_pack("{s:i, s:s, s:O}", "nbdelta-directory",
                                       STORE_FORMAT, "id", s->id, "options",
                                       options);
    CLEANUP_FREE char *text = j ? json_dumps(j, JSON_INDENT(2)) : NULL;

    return text ? dir_put(s->dir, CONFIG, text, strlen(text), errp)
                : error_nomem(errp);
}

int store_set_options(struct store *s, const json_t *options,
                      struct error **errp)
{
    CLEANUP_JSON json_t *copy = json_deep_copy(options);
    int r = store_check_writable(s, errp);

    if (r < 0) {
        return r;
    }
    if (!json_is_object(copy)) {
        return error_set(errp, EINVAL, "options are not an object");
    }
    r = write_config(s, copy, errp);
    if (r == 0) {
        json_t *old = s->options;
        s->options = copy;
        copy = old;
    }
    return r;
}

static int take_config(struct store *s, const json_t *j, struct error **errp)
{
    const json_t *format = json_object_get(j, "nbdelta-directory");
    const char *id = json_string_value(json_object_get(j, "id"));
    json_t *options = json_object_get(j, "options");

    if (!json_is_integer(format) || json_integer_value(format) < 1) {
        return error_set(errp, EINVAL,
                         "'%s/" CONFIG "' is not of a backup directory",
                         s->path);
    }
    if (json_integer_value(format) > STORE_FORMAT) {
        return error_set(
            errp, EINVAL, "'%s' has format %lld, and this nbdelta knows %d",
            s->path, (long long)json_integer_value(format), STORE_FORMAT);
    }
    if (!id || strlen(id) < 8 || strlen(id) >= sizeof(s->id) ||
        id[strspn(id, "0123456789abcdef")] != '\0' ||
        !json_is_object(options) || json_object_size(j) != 3) {
        return error_set(errp, EINVAL,
                         "'%s/" CONFIG "' is damaged: it needs an id, options, "
                         "and nothing else",
                         s->path);
    }
    (void)snprintf(s->id, sizeof(s->id), "%s", id);
    s->options = json_incref(options);
    return 0;
}

static int read_config(struct store *s, struct error **errp)
{
    CLEANUP_FREE char *text = NULL;
    size_t length = 0;
    json_error_t where;
    int r = dir_get(s->dir, CONFIG, CONFIG_MAX, &text, &length, errp);

    if (r == -ENOENT) {
        return error_set(errp, ENOENT,
                         "'%s' is not a backup directory: it has no " CONFIG,
                         s->path);
    }
    if (r < 0) {
        error_prefix(errp, "'%s': ", s->path);
        return r;
    }
    CLEANUP_JSON json_t *j = json_loadb(text, length, JSON_REJECT_DUPLICATES,
                                        &where);
    return j ? take_config(s, j, errp)
             : error_set(errp, EINVAL, "'%s/" CONFIG "' is not JSON: %s",
                         s->path, where.text);
}

/* --- Making a directory --- */

/* For dir_each: ends at the first name that a new directory cannot have. */
static int find_other(const char *name, void *opaque)
{
    (void)opaque;
    return strcmp(name, LOCK) != 0 && strcmp(name, "lost+found") != 0 &&
           !is_unfinished(name);
}

static int make_config(struct store *s, struct error **errp)
{
    uint8_t id[ID_BYTES];
    CLEANUP_JSON json_t *none = json_object();
    int r = dir_each(s->dir, find_other, NULL, errp);

    if (r < 0) {
        return r;
    }
    if (r > 0) {
        return error_set(errp, EINVAL,
                         "'%s' is not empty, and not a backup directory",
                         s->path);
    }
    if (fchmod(s->dir, 0700) < 0) {
        return error_set(errp, errno, "cannot set the mode of '%s': %s",
                         s->path, strerror(errno));
    }
    if (getrandom(id, sizeof(id), 0) != (ssize_t)sizeof(id)) {
        return error_set(errp, EIO, "there are no random numbers");
    }
    for (int i = 0; i < ID_BYTES; i++) {
        (void)snprintf(s->id + 2 * (size_t)i, 3, "%02x", id[i]);
    }
    r = none ? write_config(s, none, errp) : error_nomem(errp);
    if (r == 0) {
        s->options = json_incref(none);
    }
    return r;
}

/* Make @path unless it is there.  Its name is durable then. */
static int make_dir(const char *path, bool *made, struct error **errp)
{
    CLEANUP_FREE char *copy = strdup(path);

    if (!copy) {
        return error_nomem(errp);
    }
    if (mkdir(path, 0700) < 0) {
        return errno == EEXIST
                   ? 0
                   : error_set(errp, errno, "cannot make directory '%s': %s",
                               path, strerror(errno));
    }
    *made = true;
    CLEANUP_CLOSE int fd = open(dirname(copy),
                                O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return fd < 0 ? error_set(errp, errno, "cannot flush what '%s' is in: %s",
                              path, strerror(errno))
                  : dir_flush(fd, errp);
}

/* For dir_each: folders of disks go if they are empty.  Ends at the first name
 * that is somebody's. */
static int drop_empty(const char *name, void *opaque)
{
    const struct store *s = opaque;

    return strcmp(name, LOCK) != 0 && strcmp(name, CONFIG) != 0 &&
           unlinkat(s->dir, name, AT_REMOVEDIR) < 0;
}

/* A process that opens the lock meanwhile finds a directory in which nothing
 * can be made, or makes one of the same name. */
void store_unmake(struct store *s)
{
    if (s->made && s->lock >= 0 && dir_each(s->dir, drop_empty, s, NULL) == 0 &&
        dir_remove(s->dir, CONFIG, NULL) == 0 &&
        dir_remove(s->dir, LOCK, NULL) == 0) {
        (void)rmdir(s->path);
    }
}

/* --- Opening --- */

static int open_dir(struct store *s, const char *path, struct error **errp)
{
    s->dir = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (s->dir < 0) {
        return error_set(errp, errno, "cannot open directory '%s': %s", path,
                         strerror(errno));
    }
    s->path = realpath(path, NULL);
    return s->path ? 0
                   : error_set(errp, errno, "cannot resolve '%s': %s", path,
                               strerror(errno));
}

static int open_all(struct store *s, const char *path, enum store_mode mode,
                    const char *command, struct error **errp)
{
    CLEANUP_ERROR struct error *none = NULL;
    int r = mode == STORE_CREATE ? make_dir(path, &s->made, errp) : 0;

    r = r < 0 ? r : open_dir(s, path, errp);
    if (r < 0) {
        return r;
    }
    if (mode == STORE_WRITE && faccessat(s->dir, CONFIG, F_OK, 0) < 0) {
        return read_config(s, errp); /* leaves no lock in what is not ours */
    }
    if (mode != STORE_READ) {
        r = lock_store(s, command, errp);
        if (r < 0) {
            return r;
        }
        s->writable = true;
    }
    r = read_config(s, &none);
    if (r == -ENOENT && mode == STORE_CREATE) {
        r = make_config(s, errp);
    } else if (r < 0) {
        r = error_set(errp, -r, "%s", error_message(none));
    }
    return r < 0 ? r : store_reload(s, errp);
}

int store_open(const char *path, enum store_mode mode, const char *command,
               struct store **sp, struct error **errp)
{
    struct store *s = calloc(1, sizeof(*s));

    if (!s) {
        return error_nomem(errp);
    }
    s->dir = s->lock = -1;
    int r = open_all(s, path, mode, command, errp);
    if (r < 0) {
        store_unmake(s);
        store_close(s);
        return r;
    }
    *sp = s;
    return 0;
}
