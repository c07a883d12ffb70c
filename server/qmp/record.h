/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_QMP_RECORD_H
#define NBDELTA_SERVER_QMP_RECORD_H

/*
 * What monitors say, for tests
 * ============================
 *
 * With NBDELTA_QMP_RECORD=FILE in the environment, the value of each reply
 * and the data of each event are appended to FILE, a line of JSON each:
 *
 *     {"ret-type": "query-jobs", "value": []}
 *     {"arg-type": "JOB_STATUS_CHANGE", "value": {"id": "j", ...}}
 *
 * tests/run holds the lines of each test against query-qmp-schema, in which
 * the first key is the member that names the type of the value.
 */
#include <jansson.h>

/* Append a line.  Any thread may call this, with any locks.  What cannot be
 * written is missing. */
void qmp_record(const char *key, const char *name, json_t *value);

#endif /* NBDELTA_SERVER_QMP_RECORD_H */
