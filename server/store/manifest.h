/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_STORE_MANIFEST_H
#define NBDELTA_SERVER_STORE_MANIFEST_H

/*
 * The manifest of a point: what its files are
 * ===========================================
 *
 * JSON in one form only, with the SHA-256 of itself as the last member, so
 * that no bit of the file can change without being noticed.  A process that may
 * write to the directory may write manifests: all of it is checked.  Sizes are
 * bytes, hashes are SHA-256 in lower-case hexadecimal digits.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "nbdelta/bytes.h"
#include "store/name.h"

struct error;

#define HASH_BYTES      32
#define HASH_TEXT_MAX   (2 * HASH_BYTES + 1)
#define MANIFEST_FORMAT 1
#define MANIFEST_MAX    (1 << 20) /* bytes of its file */
#define MANIFEST_DISKS  1000
#define STORE_ID_MAX    33 /* hexadecimal digits and a NUL byte */

enum disk_kind {
    DISK_FULL,      /* no parent: the file has the whole disk */
    DISK_INCREMENT, /* a bitmap told what has changed since the parent */
    DISK_COMPARED,  /* all was read, and compared with the parent */
};

/* Why all of a disk was read. */
enum disk_reason {
    REASON_NONE, /* it was not */
    REASON_ASKED,
    REASON_NEW_DISK,
    REASON_NO_CHECKPOINT,
    REASON_BITMAP_INCONSISTENT,
    REASON_BITMAP_DISABLED,
    REASON_BASE_BITMAP,
    REASON_CHECKPOINT_PENDING,
    REASON_NO_BITMAPS, /* the disk's format or source has none */
    REASON_PARENT_MISSING,
    REASON_PARENT_DAMAGED,
    REASON_RESIZED,
    REASON_MOVED, /* the name is another image's now */
    REASON_COUNT
};

struct manifest_disk {
    char *name;
    uint64_t size;
    enum disk_kind kind;
    enum disk_reason reason;
    char parent[POINT_NAME_MAX];     /* "": none */
    char parent_hash[HASH_TEXT_MAX]; /* of the parent's .sums file, or "" */
    char *checkpoint;                /* at the source; NULL: none */
    char *image;                     /* what keeps it there; NULL: unknown */
    uint64_t read;                   /* bytes that came from the source */
    uint64_t written;                /* bytes of data in the new file */
    uint64_t zero;                   /* bytes that were known to be zeroes */
    uint64_t milliseconds;           /* that the copy took */
    char sums_hash[HASH_TEXT_MAX];   /* of the .sums file */
};

struct manifest {
    char name[POINT_NAME_MAX];
    char id[STORE_ID_MAX];        /* of the directory */
    int64_t time;                 /* seconds since 1970, as the clock was */
    char *source;                 /* as the user gave it; a path is absolute */
    char *source_version;         /* what answered there; NULL: nobody knows */
    char *program;                /* of ours: "nbdelta 0.1.0" */
    char *agent;                  /* what the guest agent answered, or NULL */
    char xml_hash[HASH_TEXT_MAX]; /* of the .xml file, or "" */
    unsigned count;
    struct manifest_disk *disks;
};

/* Bytes of the image of a disk of @size bytes: it has whole sectors.  What it
 * has behind the disk's end is zero, and is hashed with the rest. */
static inline uint64_t image_bytes(uint64_t size)
{
    return align_up(size, 512);
}

/* An empty one; NULL: no memory. */
struct manifest *manifest_new(void);
void manifest_free(struct manifest *m);
static inline void manifest_cleanup(struct manifest **m)
{
    manifest_free(*m);
}
#define CLEANUP_MANIFEST __attribute__((cleanup(manifest_cleanup)))

/* Put one more disk at the end, its fields zero except a copy of @name.  It
 * stays in its place until the next one is added.  NULL: no memory. */
struct manifest_disk *manifest_add(struct manifest *m, const char *name);

/* The disk of this name, or NULL. */
struct manifest_disk *manifest_find(const struct manifest *m, const char *name);

/*
 * From the bytes of a file.  -EINVAL: it is not a manifest, or not one of this
 * format; -EUCLEAN: it is damaged (its own hash differs); -ENOMEM.
 */
int manifest_parse(const char *text, size_t length, struct manifest **mp,
                   struct error **errp);

/* The bytes of a file; free them.  -EINVAL: @m breaks a rule that
 * manifest_parse has. */
int manifest_text(const struct manifest *m, char **text, struct error **errp);

/* Words of the manifest; "full", "new-disk"...  NULL for REASON_NONE. */
const char *disk_kind_word(enum disk_kind kind);
const char *disk_reason_word(enum disk_reason reason);
/* False: no such word. */
bool disk_reason_from(const char *word, enum disk_reason *reason);

/* SHA-256 as text; and of @bytes.  @out has HASH_TEXT_MAX bytes. */
void hash_to_text(const uint8_t *hash, char *out);
int hash_of(const void *bytes, size_t length, char *out, struct error **errp);
bool hash_text_valid(const char *text);

#endif /* NBDELTA_SERVER_STORE_MANIFEST_H */
