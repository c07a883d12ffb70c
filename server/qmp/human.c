/* SPDX-License-Identifier: BSD-3-Clause */
/* A monitor for people: see human.h. */
#include "qmp/human.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "args.h"

size_t human_feed(struct human *h, const char *data, size_t len, bool *whole)
{
    *whole = false;
    for (size_t i = 0; i < len; i++) {
        if (data[i] == '\n' || data[i] == '\r') {
            /* "\r\n" ends one line: the second has nothing to end. */
            h->line[h->len] = '\0';
            h->len = 0;
            *whole = true;
            i++;
            if (data[i - 1] == '\r' && i < len && data[i] == '\n') {
                i++;
            }
            return i;
        }
        if (data[i] != '\0' && h->len < HUMAN_LINE_MAX) {
            h->line[h->len++] = data[i];
        }
    }
    return len;
}

json_t *human_request(const char *line)
{
    size_t blanks = strspn(line, " \t");

    if (line[blanks] == '\0') {
        return NULL;
    }
    if (strcmp(line + blanks, "quit") == 0 || strcmp(line + blanks, "q") == 0) {
        return json_pack("{s:s}", "execute", "quit");
    }
    return json_pack("{s:s, s:{s:s}}", "execute", "human-monitor-command",
                     "arguments", "command-line", line);
}

char *human_text(const json_t *reply)
{
    const char *text = member_str(reply, "return");
    const char *error = member_str(json_object_get(reply, "error"), "desc");
    char *shown = NULL;

    if (text) {
        return strdup(text);
    }
    return error && asprintf(&shown, "Error: %s\r\n", error) >= 0 ? shown
                                                                  : NULL;
}
