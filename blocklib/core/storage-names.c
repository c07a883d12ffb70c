/* SPDX-License-Identifier: BSD-3-Clause */
/* Names of snapshots that are checkpoints: see storage-snapshot.h. */
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "nbdelta/cleanup.h"
#include "nbdelta/storage-snapshot.h"
#include "nbdelta/text.h"

#define CHECKPOINT "nbdelta.checkpoint."

static bool is_plain(unsigned char c)
{
    return c >= 0x80 || isalnum(c) || (c && strchr("-_.+,", c));
}

char *storage_checkpoint_name(const char *checkpoint)
{
    char *name = NULL;
    size_t size;
    FILE *f = open_memstream(&name, &size);

    if (!f) {
        return NULL;
    }
    (void)fputs(CHECKPOINT, f);
    for (const char *c = checkpoint; *c; c++) {
        (void)fprintf(f, is_plain((unsigned char)*c) ? "%c" : "%%%02X",
                      (unsigned char)*c);
    }
    if (fclose(f) != 0) {
        free(name);
        return NULL;
    }
    return name;
}

/* What %XX stands for there, or -1. */
static int code_of(const char *text)
{
    char digits[3] = "";

    if (!isxdigit((unsigned char)text[0]) ||
        !isxdigit((unsigned char)text[1])) {
        return -1;
    }
    memcpy(digits, text, 2);
    return (int)strtoul(digits, NULL, 16);
}

/* Only names that storage_checkpoint_name() gives are ours: no other is found
 * by the checkpoint's name. */
char *storage_checkpoint_of(const char *snapshot)
{
    size_t prefix = strlen(CHECKPOINT);
    char *name = strncmp(snapshot, CHECKPOINT, prefix) == 0
                     ? strdup(snapshot + prefix)
                     : NULL;
    char *to = name;

    for (const char *c = name; c && *c; c++) {
        int code = *c == '%' ? code_of(c + 1) : -1;

        c += code < 0 ? 0 : 2;
        *(unsigned char *)to++ = (unsigned char)(code < 0 ? *c : code);
    }
    if (to) {
        *to = '\0';
    }
    CLEANUP_FREE char *text = name && name[0] ? text_as_utf8(name) : NULL;
    CLEANUP_FREE char *again = text ? storage_checkpoint_name(text) : NULL;
    if (!again || strcmp(again, snapshot) != 0) {
        free(name);
        return NULL;
    }
    return name;
}
