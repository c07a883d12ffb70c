/* SPDX-License-Identifier: BSD-3-Clause */
/* Does a peer that says nothing wait for TLS?  It is asked in TLS; keys are not
 * needed for that, and nothing is believed of what it answers. */
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>

#include "nbdelta/thread.h"
#include "net/tls-priv.h"

#define MS UINT64_C(1000000)

/* 0: all is agreed upon; or why not. */
static int shake_hands(gnutls_session_t session, int fd, int limit_ms)
{
    uint64_t end = now_ns() + (uint64_t)limit_ms * MS;
    int r;

    while ((r = gnutls_handshake(session)) == GNUTLS_E_AGAIN ||
           r == GNUTLS_E_INTERRUPTED) {
        struct pollfd p = {.fd = fd, .events = POLLIN};
        uint64_t now = now_ns();

        if (now >= end || poll(&p, 1, (int)((end - now) / MS) + 1) == 0) {
            return GNUTLS_E_TIMEDOUT;
        }
    }
    return r;
}

bool tls_is_wanted(int fd, int limit_ms)
{
    gnutls_certificate_credentials_t none = NULL;
    gnutls_session_t session = NULL;
    int r = GNUTLS_E_TIMEDOUT;

    if (gnutls_certificate_allocate_credentials(&none) < 0 ||
        gnutls_init(&session,
                    GNUTLS_CLIENT | GNUTLS_NONBLOCK | GNUTLS_NO_SIGNAL) < 0) {
        session = NULL;
    }
    if (session && gnutls_set_default_priority(session) == 0 &&
        gnutls_credentials_set(session, GNUTLS_CRD_CERTIFICATE, none) == 0) {
        gnutls_transport_set_int(session, fd);
        gnutls_handshake_set_timeout(session, (unsigned)limit_ms);
        r = shake_hands(session, fd, limit_ms);
    }
    if (session) {
        gnutls_deinit(session);
    }
    if (none) {
        gnutls_certificate_free_credentials(none);
    }
    /* One that has no key in common with us ends the connection, with an alert
     * or without one. */
    return r == 0 || r == GNUTLS_E_FATAL_ALERT_RECEIVED ||
           r == GNUTLS_E_WARNING_ALERT_RECEIVED ||
           r == GNUTLS_E_PREMATURE_TERMINATION || r == GNUTLS_E_PULL_ERROR;
}
