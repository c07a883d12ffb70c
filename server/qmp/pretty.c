/* SPDX-License-Identifier: BSD-3-Clause */
/* Messages on many lines: see pretty.h. */
#include "qmp/pretty.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "nbdelta/cleanup.h"
#include "wide.h"

/* Write @text, which has an indent of 4, to @f. */
static void write_lines(FILE *f, const char *text)
{
    int indent = 0;      /* of this line */
    bool leading = true; /* only blanks so far */
    bool quoted = false;

    for (const char *p = text; *p; p++) {
        if (*p == '\n') {
            (void)fputs("\r\n", f);
            indent = 0;
            leading = true;
            continue;
        }
        leading = leading && *p == ' ';
        indent += leading;
        (void)fputc(*p, f);
        if (quoted && *p == '\\' && p[1]) {
            (void)fputc(*++p, f);
        } else if (*p == '"') {
            quoted = !quoted;
        } else if (!quoted &&
                   ((*p == '{' && p[1] == '}') || (*p == '[' && p[1] == ']'))) {
            (void)fprintf(f, "\r\n%*s", indent, "");
        }
    }
    (void)fputs("\r\n", f);
}

char *qmp_to_pretty(const json_t *message, size_t *len)
{
    CLEANUP_FREE char *text = json_dumps(message,
                                         JSON_ENSURE_ASCII | JSON_INDENT(4));
    char *lines = NULL;
    FILE *f = text ? open_memstream(&lines, len) : NULL;

    if (!f) {
        return NULL;
    }
    text[wide_write(text, strlen(text))] = '\0';
    write_lines(f, text);
    if (fclose(f) != 0) {
        free(lines);
        return NULL;
    }
    return lines;
}
