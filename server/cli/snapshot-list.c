/* SPDX-License-Identifier: BSD-3-Clause */
/* Internal snapshots, for people: see snapshot-list.h. */
#include "cli/snapshot-list.h"

#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <time.h>

#include "nbdelta/cleanup.h"
#include "nbdelta/size.h"
#include "nbdelta/text.h"

static json_int_t number(const json_t *sn, const char *key)
{
    return json_integer_value(json_object_get(sn, key));
}

static char *text(const json_t *sn, const char *key)
{
    const char *s = json_string_value(json_object_get(sn, key));

    return text_printable(s ? s : "");
}

static void print_one(const json_t *sn)
{
    CLEANUP_FREE char *id = text(sn, "id");
    CLEANUP_FREE char *name = text(sn, "name");
    char size[32];
    char date[32] = "?";
    char clock[48];
    char icount[32] = "--";
    time_t when = (time_t)number(sn, "date-sec");
    uint64_t clock_sec = (uint64_t)number(sn, "vm-clock-sec");
    struct tm tm;

    if (localtime_r(&when, &tm)) {
        (void)strftime(date, sizeof(date), "%Y-%m-%d %H:%M:%S", &tm);
    }
    (void)snprintf(clock, sizeof(clock),
                   "%04" PRIu64 ":%02" PRIu64 ":%02" PRIu64 ".%03" PRIu64,
                   clock_sec / 3600, clock_sec / 60 % 60, clock_sec % 60,
                   (uint64_t)number(sn, "vm-clock-nsec") / 1000000);
    if (json_object_get(sn, "icount")) {
        (void)snprintf(icount, sizeof(icount), "%" JSON_INTEGER_FORMAT,
                       number(sn, "icount"));
    }
    printf(
        "%-7s %-16s %8s %19s %15s %10s\n", id ? id : "?", name ? name : "?",
        size_human((uint64_t)number(sn, "vm-state-size"), size, sizeof(size)),
        date, clock, icount);
}

void snapshot_list_print(const json_t *snapshots)
{
    size_t i;
    json_t *sn;

    if (json_array_size(snapshots) == 0) {
        return;
    }
    printf("Snapshot list:\n%-7s %-16s %8s %19s %15s %10s\n", "ID", "TAG",
           "VM_SIZE", "DATE", "VM_CLOCK", "ICOUNT");
    json_array_foreach (snapshots, i, sn) {
        print_one(sn);
    }
}
