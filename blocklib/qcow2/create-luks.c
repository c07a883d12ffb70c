/* SPDX-License-Identifier: BSD-3-Clause */
/* The LUKS header of a new image: what a user asks for, how much room it takes,
 * and making it. */
#include "qcow2/create-luks.h"
#include "qcow2/encrypt.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/opts.h"
#include "core/secret.h"
#include "nbdelta/error.h"
#include "qcow2/qcow2.h"

int qcow2_create_luks_take(struct opts *o, struct create_luks *c,
                           struct error **errp)
{
    static const char *const formats[] = {"aes", "luks", NULL};
    const struct {
        const char *key;
        const char **value;
    } words[] = {
        {"encrypt.key-secret", &c->secret},
        {"encrypt.cipher-alg", &c->wish.cipher},
        {"encrypt.cipher-mode", &c->wish.mode},
        {"encrypt.ivgen-alg", &c->wish.iv},
        {"encrypt.ivgen-hash-alg", &c->wish.iv_hash},
        {"encrypt.hash-alg", &c->wish.hash},
    };
    unsigned format = ARRAY_SIZE(formats);
    bool given = false;
    int r = opts_enum(o, "encrypt.format", formats, &format, errp);

    for (size_t i = 0; i < ARRAY_SIZE(words) && r == 0; i++) {
        r = opts_str(o, words[i].key, words[i].value, errp);
        given |= *words[i].value != NULL;
    }
    c->wish.has_iter = opts_has(o, "encrypt.iter-time");
    if (r == 0) {
        r = opts_uint(o, "encrypt.iter-time", UINT32_MAX, &c->wish.iter_ms,
                      errp);
    }
    if (r < 0) {
        return r;
    }
    c->on = format == 1;
    if (format == 0) {
        return error_set(errp, ENOTSUP,
                         "encrypt.format=aes is not supported: it is weak; "
                         "take encrypt.format=luks");
    }
    return !c->on && (given || c->wish.has_iter)
               ? error_set(errp, EINVAL,
                           "Parameter 'encrypt.format' is missing")
               : 0;
}

int qcow2_create_luks_plan(struct create_luks *c, struct error **errp)
{
    if (!c->on) {
        return 0;
    }
    return c->secret ? luks_plan(&c->wish, &c->header, errp)
                     : error_set(errp, EINVAL,
                                 "Parameter 'encrypt.key-secret' is required "
                                 "for cipher");
}

uint64_t qcow2_create_luks_bytes(const struct create_luks *c)
{
    return c->on ? luks_bytes(&c->header) : 0;
}

int qcow2_create_luks_make(struct create_luks *c, struct graph *g,
                           unsigned char *area, struct error **errp)
{
    struct secret secret = {NULL, 0};
    int r = 0;

    if (!c->on) {
        return 0;
    }
    r = g ? secret_get(g, c->secret, &secret, errp)
          : error_set(errp, ENOENT, "No secret with id '%s'", c->secret);
    if (r == 0) {
        r = luks_make(&c->header, &c->wish, secret.bytes, secret.len, area,
                      c->key, errp);
        memcpy(c->head, area, sizeof(c->head));
    }
    secret_release(&secret);
    return r;
}

struct toil *qcow2_create_luks_known(const struct create_luks *c)
{
    return qcow2_luks_known(c->head, c->key);
}

void qcow2_create_luks_forget(struct create_luks *c)
{
    explicit_bzero(c->key, sizeof(c->key));
}
