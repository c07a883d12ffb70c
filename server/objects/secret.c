/* SPDX-License-Identifier: BSD-3-Clause */
/* Reading and decoding the secrets of objects "secret": see secret.h. */
#include "objects/secret.h"

#include <errno.h>
#include <fcntl.h>
#include <gnutls/gnutls.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"

#define SECRET_MAX (64 * KiB)

static const char *const formats[] = {"raw", "base64", NULL};

const struct qmp_arg secret_args[] = {
    QMP_OPT("data", STR),
    QMP_OPT("file", STR),
    QMP_OPT("format", ENUM, .words = formats),
    QMP_LAST,
};

static int check_readable(const char *path, struct error **errp)
{
    CLEANUP_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);

    return fd < 0 ? error_set(errp, errno, "Unable to read %s: %s", path,
                              strerror(errno))
                  : 0;
}

int secret_check(const json_t *props, struct error **errp)
{
    const char *file = member_str(props, "file");

    if (member_str(props, "data") && file) {
        return error_set(errp, EINVAL,
                         "'file' and 'data' are mutually exclusive");
    }
    if (!member_str(props, "data") && !file) {
        return error_set(errp, EINVAL,
                         "Either 'file' or 'data' must be provided");
    }
    return file ? check_readable(file, errp) : 0;
}

static int read_file(const char *path, char *text, size_t *len,
                     struct error **errp)
{
    CLEANUP_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);

    *len = 0;
    for (ssize_t n = 1; n > 0; *len += (size_t)n) {
        n = fd < 0 ? -1 : read(fd, text + *len, SECRET_MAX - *len);
        if (n < 0) {
            return error_set(errp, errno, "Unable to read %s: %s", path,
                             strerror(errno));
        }
    }
    return *len < SECRET_MAX
               ? 0
               : error_set(errp, EFBIG, "Unable to read %s: it is too long",
                           path);
}

static int copy_data(const char *data, char *text, size_t *len,
                     struct error **errp)
{
    *len = strlen(data);
    if (*len >= SECRET_MAX) {
        return error_set(errp, EFBIG, "the secret is too long");
    }
    memcpy(text, data, *len);
    return 0;
}

/* Decode in place: the decoded text is shorter. */
static int decode_base64(char *text, size_t *len, struct error **errp)
{
    gnutls_datum_t coded = {(unsigned char *)text, (unsigned)*len};
    gnutls_datum_t plain;

    int r = gnutls_base64_decode2(&coded, &plain);
    if (r < 0) {
        return error_set(errp, EINVAL, "the secret is not base64: %s",
                         gnutls_strerror(r));
    }
    explicit_bzero(text, SECRET_MAX);
    memcpy(text, plain.data, plain.size);
    *len = plain.size;
    explicit_bzero(plain.data, plain.size);
    gnutls_free(plain.data);
    return 0;
}

int secret_bytes(const json_t *props, char **bytes, size_t *count,
                 struct error **errp)
{
    const char *data = member_str(props, "data");
    const char *format = member_str(props, "format");
    char *buf = calloc(1, SECRET_MAX);
    size_t len = 0;

    if (!buf) {
        return error_nomem(errp);
    }
    int r = data ? copy_data(data, buf, &len, errp)
                 : read_file(member_str(props, "file"), buf, &len, errp);
    if (r == 0 && format && strcmp(format, "base64") == 0) {
        r = decode_base64(buf, &len, errp);
    }
    if (r < 0) {
        secret_free(buf);
        return r;
    }
    *bytes = buf;
    *count = len;
    return 0;
}

int secret_text(const json_t *props, char **text, struct error **errp)
{
    size_t len = 0;
    int r = secret_bytes(props, text, &len, errp);

    if (r == 0 && strlen(*text) != len) {
        secret_free(*text);
        *text = NULL;
        r = error_set(errp, EINVAL, "there is a NUL in the secret");
    }
    return r;
}

void secret_free(char *text)
{
    if (text) {
        explicit_bzero(text, SECRET_MAX);
        free(text);
    }
}
