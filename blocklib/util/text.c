/* SPDX-License-Identifier: BSD-3-Clause */
/* Identifiers, UTF-8, and text that is safe to show: see text.h. */
#include "nbdelta/text.h"

#include <stdlib.h>
#include <string.h>

#include "nbdelta/bytes.h"

#define LETTERS                  \
    "abcdefghijklmnopqrstuvwxyz" \
    "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

size_t text_id_length(const char *s)
{
    return strspn(s, LETTERS) > 0 ? strspn(s, LETTERS "0123456789-._") : 0;
}

bool text_is_id(const char *s)
{
    return *s && s[text_id_length(s)] == '\0';
}

size_t text_char(const char *s, uint32_t *code)
{
    /* The least code that needs so many bytes. */
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    unsigned char first = (unsigned char)s[0];
    size_t len = first < 0x80             ? 1
                 : (first & 0xe0) == 0xc0 ? 2
                 : (first & 0xf0) == 0xe0 ? 3
                 : (first & 0xf8) == 0xf0 ? 4
                                          : 0;
    uint32_t c = len < 2 ? first : first & (0x7fU >> len);

    for (size_t i = 1; i < len; i++) {
        unsigned char next = (unsigned char)s[i];

        if ((next & 0xc0) != 0x80) {
            return 0; /* a NUL byte, too: nothing behind it is read */
        }
        c = c << 6 | (next & 0x3f);
    }
    if (len == 0 || c < least[len] || c > 0x10ffff ||
        (c >= 0xd800 && c <= 0xdfff)) {
        return 0;
    }
    *code = c;
    return len;
}

bool text_is_plain(uint32_t code)
{
    static const struct {
        uint32_t first;
        uint32_t last;
    } other[] = {
        {0x0000, 0x001f},   /* C0 */
        {0x007f, 0x009f},   /* DEL, C1 */
        {0x061c, 0x061c},   /* Arabic letter mark */
        {0x200e, 0x200f},   /* left-to-right and right-to-left marks */
        {0x2028, 0x202e},   /* separators; embeddings and overrides */
        {0x2060, 0x206f},   /* invisible operators; isolates */
        {0xfeff, 0xfeff},   /* byte order mark */
        {0xfff9, 0xfffb},   /* annotations */
        {0xe0000, 0xe0fff}, /* tags */
    };

    for (size_t i = 0; i < ARRAY_SIZE(other); i++) {
        if (code >= other[i].first && code <= other[i].last) {
            return false;
        }
    }
    return true;
}

void text_make_printable(char *s)
{
    char *out = s;

    while (*s) {
        uint32_t code = 0;
        size_t len = text_char(s, &code);

        if (len == 0 || !text_is_plain(code)) {
            *out++ = '?';
            s += len > 0 ? len : 1;
        } else {
            memmove(out, s, len);
            out += len;
            s += len;
        }
    }
    *out = '\0';
}

char *text_printable(const char *s)
{
    char *copy = strdup(s);

    if (copy) {
        text_make_printable(copy);
    }
    return copy;
}

char *text_as_utf8(const char *s)
{
    static const char unknown[] = "\xef\xbf\xbd"; /* U+FFFD */
    char *copy = malloc(strlen(s) * (sizeof(unknown) - 1) + 1);
    char *to = copy;
    uint32_t code;

    if (!copy) {
        return NULL;
    }
    while (*s) {
        size_t len = text_char(s, &code);

        to = len > 0 ? mempcpy(to, s, len)
                     : mempcpy(to, unknown, sizeof(unknown) - 1);
        s += len > 0 ? len : 1;
    }
    *to = '\0';
    return copy;
}
