/* SPDX-License-Identifier: BSD-3-Clause */

/* What a monitor answers, as metrics: each line is a comment of ours or a
 * sample of ours, whatever the names in the answers are. */
#include <ctype.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/monitor-metrics.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/text.h"

static void check(bool ok)
{
    if (!ok) {
        abort();
    }
}

/* The end of the value of a label that begins at @p, behind its quote. */
static const char *skip_value(const char *p)
{
    while (*p != '"') {
        if (*p == '\\') {
            p++;
            check(*p == '\\' || *p == '"' || *p == 'n');
        }
        check(*p != '\0');
        p++;
    }
    return p + 1;
}

static void check_sample(const char *p)
{
    char *end;

    check(strncmp(p, "nbdelta_", 8) == 0);
    p += strspn(p, "abcdefghijklmnopqrstuvwxyz_");
    check(*p == '{');
    do {
        p++;
        p += strspn(p, "abcdefghijklmnopqrstuvwxyz");
        check(p[0] == '=' && p[1] == '"');
        p = skip_value(p + 2);
    } while (*p == ',');
    check(p[0] == '}' && p[1] == ' ');
    (void)strtod(p + 2, &end);
    check(end > p + 2 && *end == '\0');
}

static void check_text(char *text)
{
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
        for (const char *p = line; *p;) {
            uint32_t code = 0;
            size_t len = text_char(p, &code);

            check(len > 0 && text_is_plain(code));
            p += len;
        }
        if (line[0] != '#') {
            check_sample(line);
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    CLEANUP_JSON json_t *answers = json_loadb((const char *)data, size, 0,
                                              NULL);
    struct monitor_answers a = {"a\xff\x80\x1b\"", answers,
                                json_object_get(answers, "refused")};
    char *text = NULL;
    size_t len = 0;
    FILE *f = answers ? open_memstream(&text, &len) : NULL;

    if (f) {
        int r = monitor_metrics_write(f, &a);

        (void)fclose(f);
        if (r == 0) {
            check(len > 0 && text[len - 1] == '\n');
            check_text(text);
        }
    }
    free(text);
    return 0;
}
