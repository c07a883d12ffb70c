/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_CORE_REMOTE_NAME_H
#define NBDELTA_CORE_REMOTE_NAME_H

/*
 * Names of exports of NBD servers, and the options that they stand for:
 *
 *   nbd://HOST[:PORT]/EXPORT             nbd:HOST:PORT[:exportname=EXPORT]
 *   nbd+unix:///EXPORT?socket=PATH       nbd:unix:PATH[:exportname=EXPORT]
 *   nbd+vsock://CID[:PORT]/EXPORT
 *
 * nbds://, nbds+unix:// and nbds+vsock:// want TLS; a user name before the
 * host, tls-certificates=DIR and tls-psk-file=FILE may say with which keys.
 */
#include <jansson.h>
#include <stdbool.h>

#define REMOTE_PORT "10809"

struct error;

/* Does @text begin like the name of a remote export? */
bool remote_is_name(const char *text);

/* A new object with "server" and, where they are given, "export", "tls",
 * "tls-username", "tls-certificates" and "tls-psk-file".  -EINVAL. */
int remote_name_parse(const char *text, json_t **options, struct error **errp);

#endif /* NBDELTA_CORE_REMOTE_NAME_H */
