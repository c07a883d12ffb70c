/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Encrypted images: opening them, and coding what is in their clusters.
 *
 *   header --> extension --> LUKS header, key slots    crypto/luks.h
 *                                   |  passphrase
 *                                master key
 *                                   |
 *   guest bytes <--- decode ---- cluster               crypto/sectors.h
 *               --- encode --->
 *
 * Only clusters of data are encrypted, by sectors of 512 bytes.  The number of
 * a sector is that of its place in the file that it is in, not of the disk.  A
 * place that was never written does not read as zeroes, so a new cluster is
 * always written as a whole.
 *
 * Reading decrypts in the reader's buffer; writing encrypts into a buffer of
 * its own, a chunk at a time.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/graph-priv.h"
#include "core/opts.h"
#include "core/toil.h"
#include "crypto/luks.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "qcow2/encrypt.h"
#include "qcow2/qcow2.h"
#include "util/iov.h"

#define CHUNK (128 * KiB)

/* An image takes so long to unlock at the most; QEMU's take 2 seconds for each
 * slot that is tried. */
#define UNLOCK_NS (UINT64_C(60) * 1000000000)

struct qcow2_luks {
    struct luks_header header;
    struct qcow2_run place;
    struct sector_cipher *cipher; /* NULL: the key is not known */
};

static const char *const formats[] = {"aes", "luks", NULL};

const struct option qcow2_encrypt_options[] = {
    OPTION("format", ENUM, .words = formats),
    OPTION("key-secret", STR),
    OPTIONS_END,
};

/* --- The toil of unlocking --- */

static const char unlock_kind;

struct unlock {
    struct toil toil;
    unsigned char head[LUKS_HEADER_BYTES];
    struct luks_header header;
    unsigned char *material[LUKS_SLOTS]; /* malloc()ed, of active slots */
    struct secret secret;
    char *id;       /* of the secret */
    char *filename; /* of the image */
    unsigned char key[SECTOR_KEY_MAX];
};

static struct unlock *unlock_of(struct toil *t)
{
    return list_entry(t, struct unlock, toil);
}

static void unlock_free(struct toil *t)
{
    struct unlock *u = unlock_of(t);

    for (unsigned i = 0; i < LUKS_SLOTS; i++) {
        free(u->material[i]);
    }
    secret_release(&u->secret);
    free(u->id);
    free(u->filename);
    explicit_bzero(u, sizeof(*u));
    free(u);
}

static int unlock_run(struct toil *t, bool (*stop)(void *opaque), void *opaque,
                      struct error **errp)
{
    struct unlock *u = unlock_of(t);
    struct timespec now;

    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    const struct kdf_patience p = {
        .until_ns = (uint64_t)now.tv_sec * UINT64_C(1000000000) +
                    (uint64_t)now.tv_nsec + UNLOCK_NS,
        .stop = stop,
        .opaque = opaque,
    };
    int r = luks_unlock(&u->header, (const unsigned char *const *)u->material,
                        u->secret.bytes, u->secret.len, &p, u->key, errp);
    if (r < 0) {
        error_prefix(errp, "Could not open '%s': ", u->filename);
    }
    return r;
}

static struct unlock *unlock_new(const unsigned char *head)
{
    struct unlock *u = calloc(1, sizeof(*u));

    if (u) {
        u->toil.kind = &unlock_kind;
        u->toil.run = unlock_run;
        u->toil.free = unlock_free;
        list_init(&u->toil.in_set);
        memcpy(u->head, head, LUKS_HEADER_BYTES);
    }
    return u;
}

struct toil *qcow2_luks_known(const unsigned char *header,
                              const unsigned char *key)
{
    struct unlock *u = unlock_new(header);

    if (!u) {
        return NULL;
    }
    memcpy(u->key, key, SECTOR_KEY_MAX);
    u->toil.done = true;
    return &u->toil;
}

struct wanted {
    const unsigned char *head;
    const char *id;
};

/* The same header, so the same key; for a user who knows the same secret. */
static bool unlock_fits(const struct toil *t, const void *opaque)
{
    const struct wanted *w = opaque;
    const struct unlock *u = list_entry((struct toil *)(uintptr_t)t,
                                        struct unlock, toil);

    return memcmp(u->head, w->head, LUKS_HEADER_BYTES) == 0 &&
           (!u->id || strcmp(u->id, w->id) == 0);
}

static int read_material(struct qcow2 *s, struct unlock *u, struct error **errp)
{
    const struct luks_header *h = &u->header;
    size_t bytes = luks_material_bytes(h);

    for (unsigned i = 0; i < LUKS_SLOTS; i++) {
        const struct luks_slot *slot = &h->slots[i];

        if (!slot->active) {
            continue;
        }
        u->material[i] = malloc(bytes);
        if (!u->material[i]) {
            return error_nomem(errp);
        }
        int r = node_pread(
            s->file, u->material[i], bytes,
            s->luks->place.host + (uint64_t)slot->sector * SECTOR_BYTES, 0);
        if (r < 0) {
            return error_set(errp, -r, "cannot read a LUKS key slot: %s",
                             strerror(-r));
        }
    }
    return 0;
}

/* Leave it to the opener to find the key. */
static int leave_unlocking(struct qcow2 *s, const struct wanted *w,
                           struct error **errp)
{
    struct graph *g = s->node->graph;
    struct unlock *u = unlock_new(w->head);

    if (!u) {
        return error_nomem(errp);
    }
    u->header = s->luks->header;
    u->id = strdup(w->id);
    u->filename = strdup(node_filename(s->file));
    int r = u->id && u->filename ? secret_get(g, w->id, &u->secret, errp)
                                 : error_nomem(errp);
    if (r == 0) {
        r = read_material(s, u, errp);
    }
    if (r < 0) {
        unlock_free(&u->toil);
        return r;
    }
    return toil_leave(g, &u->toil, errp);
}

/* --- Opening --- */

/* What the options say; *secret is NULL where they name none. */
static int take_options(const struct qcow2_header *h, struct opts *opts,
                        const char **secret, struct error **errp)
{
    unsigned format = ARRAY_SIZE(formats);
    int r = opts_enum(opts, "encrypt.format", formats, &format, errp);

    *secret = NULL;
    if (r == 0) {
        r = opts_str(opts, "encrypt.key-secret", secret, errp);
    }
    if (r < 0) {
        return r;
    }
    bool given = format < ARRAY_SIZE(formats);
    if (h->crypt == QCOW2_PLAIN && (given || *secret)) {
        return error_set(errp, EINVAL,
                         "No encryption in image header, but options specified "
                         "%s '%s'",
                         given ? "format" : "the secret",
                         given ? formats[format] : *secret);
    }
    if (h->crypt == QCOW2_LUKS && given && format != 1) {
        return error_set(errp, EINVAL,
                         "Header reported 'luks' encryption format but options "
                         "specify '%s'",
                         formats[format]);
    }
    return 0;
}

static int read_header(struct qcow2 *s, unsigned char head[LUKS_HEADER_BYTES],
                       struct error **errp)
{
    const struct qcow2_run *at = &s->luks->place;
    uint64_t size = node_size(s->file);

    if (at->bytes < LUKS_HEADER_BYTES ||
        !range_inside(at->host, LUKS_HEADER_BYTES, size)) {
        return error_set(errp, EINVAL,
                         "the LUKS header lies behind the end of the file");
    }
    int r = node_pread(s->file, head, LUKS_HEADER_BYTES, at->host, 0);
    if (r < 0) {
        return error_set(errp, -r, "cannot read the LUKS header: %s",
                         strerror(-r));
    }
    return luks_parse(head, min_u64(at->bytes, size - at->host),
                      &s->luks->header, errp);
}

static int unlock(struct qcow2 *s, const struct wanted *w, struct error **errp)
{
    struct toil *t = toil_find(s->node->graph, &unlock_kind, unlock_fits, w);

    return t ? sector_cipher_new(&s->luks->header.spec, unlock_of(t)->key,
                                 &s->luks->cipher, errp)
             : leave_unlocking(s, w, errp);
}

int qcow2_luks_open(struct qcow2 *s, const struct qcow2_header *h,
                    struct opts *opts, struct error **errp)
{
    unsigned char head[LUKS_HEADER_BYTES];
    struct wanted w = {.head = head};
    int r = take_options(h, opts, &w.id, errp);

    if (r < 0 || h->crypt != QCOW2_LUKS) {
        return r;
    }
    if (h->autoclear & QCOW2_AUTOCLEAR_RAW) {
        return error_set(errp, EINVAL,
                         "the image is encrypted, and has a raw data file, "
                         "which contradict each other");
    }
    if (!is_aligned(h->size, SECTOR_BYTES)) {
        return error_set(errp, EINVAL,
                         "the image is encrypted, and does not end with a "
                         "sector");
    }
    s->luks = calloc(1, sizeof(*s->luks));
    if (!s->luks) {
        return error_nomem(errp);
    }
    s->luks->place = (struct qcow2_run){h->luks_offset, h->luks_bytes};
    r = read_header(s, head, errp);
    if (r < 0 || s->node->graph->without_data) {
        return r;
    }
    return w.id ? unlock(s, &w, errp)
                : error_set(errp, EINVAL,
                            "Parameter 'encrypt.key-secret' is required for "
                            "cipher");
}

void qcow2_luks_free(struct qcow2 *s)
{
    if (s->luks) {
        sector_cipher_free(s->luks->cipher);
        free(s->luks);
        s->luks = NULL;
    }
}

bool qcow2_is_locked(const struct qcow2 *s)
{
    return s->luks && !s->luks->cipher;
}

int qcow2_luks_cover(struct qcow2 *s)
{
    const struct qcow2_run *at = &s->luks->place;

    return qcow2_overlap_add(s, QCOW2_META_HEADER, at->host, at->bytes);
}

/* --- Describing --- */

static json_t *describe_slots(const struct luks_header *h)
{
    json_t *slots = json_array();

    for (unsigned i = 0; i < LUKS_SLOTS; i++) {
        const struct luks_slot *s = &h->slots[i];
        json_int_t offset = (json_int_t)s->sector * SECTOR_BYTES;

        (void)json_array_append_new(
            slots,
            s->active
                ? json_pack("{s:b, s:I, s:I, s:I}", "active", 1, "iters",
                            (json_int_t)s->iterations, "key-offset", offset,
                            "stripes", (json_int_t)s->stripes)
                : json_pack("{s:b, s:I}", "active", 0, "key-offset", offset));
    }
    return slots;
}

json_t *qcow2_luks_describe(const struct qcow2 *s)
{
    const struct luks_header *h = &s->luks->header;
    struct luks_names names;

    luks_name(h, &names);
    return json_pack(
        "{s:s, s:s*, s:s, s:s, s:s, s:s, s:s, s:o*, s:b, s:I, s:I}",
        "ivgen-alg", names.iv, "ivgen-hash-alg", names.iv_hash, "hash-alg",
        h->hash->name, "cipher-alg", names.cipher, "uuid", h->uuid, "format",
        "luks", "cipher-mode", names.mode, "slots", describe_slots(h),
        "detached-header", 0, "payload-offset", (json_int_t)luks_bytes(h),
        "master-key-iters", (json_int_t)h->digest_iterations);
}

/* --- Coding --- */

/* A place in scattered bytes, which only moves on. */
struct cursor {
    const struct iovec *iov; /* the element that it is in */
    uint64_t begin;          /* of that element */
};

/* The bytes of whole sectors, at most @bytes of them, that lie in one piece
 * from @at on.  0: the sector there lies in several elements. */
static uint64_t whole_sectors(struct cursor *c, uint64_t at, uint64_t bytes,
                              char **p)
{
    while (at >= c->begin + c->iov->iov_len) {
        c->begin += c->iov->iov_len;
        c->iov++;
    }
    uint64_t inside = at - c->begin;

    *p = (char *)c->iov->iov_base + inside;
    return min_u64(align_down(c->iov->iov_len - inside, SECTOR_BYTES), bytes);
}

/* In the reader's buffer.  A sector that lies in several elements is taken out
 * and put back. */
int qcow2_decode(struct node *n, uint64_t host, const struct iovec *iov,
                 int cnt)
{
    const struct qcow2 *s = n->state;
    struct sector_cipher *c = s->luks->cipher;
    struct cursor cursor = {.iov = iov};
    uint64_t end = iov_bytes(iov, cnt);
    int r = 0;

    for (uint64_t at = 0; at < end && r == 0;) {
        unsigned char split[SECTOR_BYTES];
        char *p;
        uint64_t len = whole_sectors(&cursor, at, end - at, &p);

        if (len > 0) {
            r = sector_decrypt(c, (host + at) / SECTOR_BYTES, p, len);
        } else {
            len = SECTOR_BYTES;
            iov_to_buf(iov, cnt, at, split, len);
            r = sector_decrypt(c, (host + at) / SECTOR_BYTES, split, len);
            iov_from_buf(iov, cnt, at, split, len);
        }
        at += len;
    }
    return r;
}

/* What a write has from @from on goes to @host. */
struct piece {
    const struct iovec *iov;
    int cnt;
    uint64_t from;
    uint64_t host;
    uint64_t bytes;
};

static int encode(struct sector_cipher *c, const struct piece *p,
                  struct cursor *cursor, char *to)
{
    int r = 0;

    for (uint64_t done = 0; done < p->bytes && r == 0;) {
        char *from;
        uint64_t at = p->from + done;
        uint64_t len = whole_sectors(cursor, at, p->bytes - done, &from);

        if (len == 0) {
            len = SECTOR_BYTES;
            from = to + done;
            iov_to_buf(p->iov, p->cnt, at, from, len);
        }
        r = sector_encrypt(c, (p->host + done) / SECTOR_BYTES, from, to + done,
                           len);
        done += len;
    }
    return r;
}

static int write_encoded(struct qcow2 *s, uint64_t host, uint64_t bytes,
                         const struct iovec *iov, int cnt, unsigned flags)
{
    CLEANUP_FREE char *buf = buf_alloc(min_u64(bytes, CHUNK));
    struct cursor cursor = {.iov = iov};
    int r = buf ? 0 : -ENOMEM;

    for (uint64_t at = 0; at < bytes && r == 0; at += CHUNK) {
        uint64_t len = min_u64(bytes - at, CHUNK);
        const struct piece p = {iov, cnt, at, host + at, len};

        r = encode(s->luks->cipher, &p, &cursor, buf);
        if (r == 0) {
            r = node_pwrite(s->data, buf, len, host + at, flags);
        }
        flags &= ~(unsigned)REQ_NOWAIT; /* the rest has to follow */
        if (at + len < bytes) {
            node_request_changed();
        }
    }
    return r;
}

int qcow2_write_data(struct qcow2 *s, uint64_t host, uint64_t bytes,
                     const struct iovec *iov, int cnt, unsigned flags)
{
    return s->luks ? write_encoded(s, host, bytes, iov, cnt, flags)
                   : node_pwritev(s->data, host, bytes, iov, cnt, flags);
}

int qcow2_write_coded(struct node *n, uint64_t host, uint64_t bytes,
                      const struct iovec *iov, int cnt, unsigned flags)
{
    return write_encoded(n->state, host, bytes, iov, cnt, flags);
}
