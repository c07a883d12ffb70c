/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_QMP_HUMAN_H
#define NBDELTA_SERVER_QMP_HUMAN_H

/*
 * A monitor for people: lines instead of JSON
 * ===========================================
 *
 *     QEMU 10.0.2 monitor - type 'help' for more information
 *     (qemu) info block-jobs          what was typed, sent back
 *     No active jobs                  what human-monitor-command returns
 *     (qemu)
 */
#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#define HUMAN_PROMPT   "(qemu) "
#define HUMAN_LINE_MAX 4095 /* bytes; what is behind them is lost */

struct human {
    char line[HUMAN_LINE_MAX + 1];
    size_t len;
};

/* Take bytes until a line is whole, which then is h->line, until the next call.
 * Returns the bytes that were taken. */
size_t human_feed(struct human *h, const char *data, size_t len, bool *whole);

/* The request of QMP that a line stands for; NULL: the line is empty, or there
 * is no memory. */
json_t *human_request(const char *line);

/* What is shown of a reply; to be freed.  NULL: nothing. */
char *human_text(const json_t *reply);

#endif /* NBDELTA_SERVER_QMP_HUMAN_H */
