/* SPDX-License-Identifier: BSD-3-Clause */

/* Any bytes in the place of TLS, in pieces as long as their first byte says.  A
 * session takes them or fails, never waits, and leaves nothing behind. */
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "nbdelta/tls-creds.h"
#include "net/tls.h"

#define INPUT_MAX (64U << 10)

static void check(bool ok)
{
    if (!ok) {
        abort();
    }
}

/* 0: it goes on. */
static int step(struct tls *t, bool *open)
{
    char buf[4096];
    struct iovec iov = {buf, sizeof(buf)};
    ssize_t r;

    if (!*open) {
        r = tls_handshake(t, NULL);
        *open = r == 0;
        return r == -EAGAIN ? 0 : (int)r;
    }
    while ((r = tls_receive(t, &iov, 1, false)) > 0) {
    }
    return r == -EAGAIN ? 0 : -EPROTO;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const struct tls_creds creds = {.kind = TLS_ANON, .server = true};
    static struct tls_keys *keys;
    bool open = false;
    int fds[2];

    if (size > INPUT_MAX) {
        return 0;
    }
    check(keys || tls_keys_load(&creds, NULL, &keys, NULL) == 0);
    check(socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0);
    struct tls *t = tls_new(keys, fds[0], NULL);
    check(t != NULL);
    while (size > 0) {
        size_t n = data[0] == 0 ? size - 1 : data[0];

        n = n < size ? n : size - 1;
        check(send(fds[1], data + 1, n, MSG_DONTWAIT) == (ssize_t)n);
        data += n + 1;
        size -= n + 1;
        if (step(t, &open) < 0) {
            break;
        }
    }
    tls_end(t, size % 2);
    tls_free(t);
    (void)close(fds[0]);
    (void)close(fds[1]);
    return 0;
}
