/* SPDX-License-Identifier: BSD-3-Clause */
/* What monitors say, for tests: see record.h. */
#include "qmp/record.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "nbdelta/cleanup.h"

static pthread_once_t once = PTHREAD_ONCE_INIT;
static int record_fd = -1; /* written once, open up to the end */

static void open_record(void)
{
    const char *path = getenv("NBDELTA_QMP_RECORD");

    if (path) {
        record_fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    }
}

void qmp_record(const char *key, const char *name, json_t *value)
{
    (void)pthread_once(&once, open_record);
    if (record_fd < 0) {
        return;
    }
    CLEANUP_JSON json_t *line = json_pack("{s:s, s:O}", key, name, "value",
                                          value);
    CLEANUP_FREE char *text = json_dumps(line, JSON_ENSURE_ASCII);
    if (text) {
        /* One write, because other threads write lines, too.  The line ends
         * where JSON has its '\0'. */
        size_t len = strlen(text);
        text[len] = '\n';
        (void)!write(record_fd, text, len + 1);
    }
}
