/* SPDX-License-Identifier: BSD-3-Clause */
/* What blkdebug fails and holds up, and what it lets pass. */
#include <check.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/event.h"
#include "core/graph.h"
#include "core/opts.h"
#include "nbdelta/blkdebug.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/image.h"
#include "nbdelta/options.h"

#define LONG_MS 60000 /* no test waits so long when all is well */

static struct graph *g;
static struct blk *b;
static char buf[1 * MiB];

static void start(void)
{
    g = graph_new();
    b = NULL;
}

static void stop(void)
{
    blk_free(b);
    graph_free(g);
}

static int open_json(const char *text, struct node **n, struct error **errp)
{
    CLEANUP_JSON json_t *o = NULL;
    int r = options_parse(text, NULL, &o, errp);
    return r < 0 ? r : graph_open(g, o, n, errp);
}

static void must_open(const char *text)
{
    CLEANUP_ERROR struct error *err = NULL;
    struct node *n;
    int r = open_json(text, &n, &err);

    ck_assert_msg(r == 0, "%s", error_message(err));
    blk_free(b);
    r = blk_new(g, n, PERM_ALL, PERM_ALL, "test", &b, &err);
    ck_assert_msg(r == 0, "%s", error_message(err));
}

#define MEM "'driver':'mem','size':1048576"

/* raw over blkdebug, with these options, over memory. */
static void open_rules(const char *rules)
{
    char text[2048];

    (void)snprintf(text, sizeof(text),
                   "{'driver':'raw','discard':'unmap','file':"
                   "{'driver':'blkdebug',%s%s'image':{" MEM "}}}",
                   rules, rules[0] ? "," : "");
    for (char *c = text; *c; c++) {
        *c = *c == '\'' ? '"' : *c;
    }
    must_open(text);
}

static void refuse(const char *rules, const char *why)
{
    struct error *err = NULL;
    struct node *n;
    char text[1024];

    (void)snprintf(text, sizeof(text),
                   "{'driver':'blkdebug',%s,'image':{" MEM "}}", rules);
    for (char *c = text; *c; c++) {
        *c = *c == '\'' ? '"' : *c;
    }
    ck_assert_int_lt(open_json(text, &n, &err), 0);
    ck_assert_msg(strstr(error_message(err), why) != NULL, "%s: %s", rules,
                  error_message(err));
    error_free(err);
}

static int rd(uint64_t offset, uint64_t bytes)
{
    return blk_pread(b, buf, bytes, offset, 0);
}
static int wr(uint64_t offset, uint64_t bytes)
{
    return blk_pwrite(b, buf, bytes, offset, 0);
}

static void write_file(const char *name, const char *text)
{
    FILE *f = fopen(name, "w");
    ck_assert_ptr_nonnull(f);
    (void)fputs(text, f);
    (void)fclose(f);
}

/* --- Errors --- */

START_TEST(an_event_arms_errors_for_the_requests_that_follow)
{
    open_rules("'inject-error':[{'event':'read_aio'}]");
    ck_assert_int_eq(wr(0, 4096), 0);
    ck_assert_int_eq(rd(0, 4096), -EIO);
    ck_assert_int_eq(rd(65536, 512), -EIO);
    /* It stays armed, for all kinds of requests. */
    ck_assert_int_eq(wr(0, 4096), -EIO);
    ck_assert_int_eq(blk_flush(b), -EIO);
    ck_assert_int_eq(blk_discard(b, 0, 65536), -EIO);
    ck_assert_int_eq(blk_zero(b, 0, 65536, 0), -EIO);
}
END_TEST

START_TEST(an_error_that_comes_once_does_not_come_again)
{
    open_rules("'inject-error':[{'event':'write_aio','errno':28,'once':true}]");
    ck_assert_int_eq(rd(0, 4096), 0);
    ck_assert_int_eq(wr(0, 4096), -ENOSPC);
    ck_assert_int_eq(wr(0, 4096), 0);
    ck_assert_int_eq(wr(0, 4096), 0);
}
END_TEST

START_TEST(an_errno_of_zero_fails_nothing)
{
    open_rules("'inject-error':[{'event':'write_aio','errno':0}]");
    ck_assert_int_eq(wr(0, 4096), 0);
}
END_TEST

START_TEST(a_sector_fails_requests_that_touch_it)
{
    open_rules("'inject-error':[{'event':'none','sector':8}]");
    ck_assert_int_eq(rd(0, 4096), 0);
    ck_assert_int_eq(rd(4097, 4096), 0); /* the sector's first byte counts */
    ck_assert_int_eq(rd(4096, 1), -EIO);
    ck_assert_int_eq(rd(0, 4097), -EIO);
    ck_assert_int_eq(blk_flush(b), 0);
}
END_TEST

START_TEST(an_iotype_fails_only_requests_of_its_kind)
{
    static const char *const types[] = {"read", "write", "write-zeroes",
                                        "discard", "flush"};
    char text[100];

    (void)snprintf(text, sizeof(text),
                   "'inject-error':[{'event':'none','iotype':'%s'}]",
                   types[_i]);
    open_rules(text);
    ck_assert_int_eq(rd(0, 512), _i == 0 ? -EIO : 0);
    ck_assert_int_eq(wr(0, 512), _i == 1 ? -EIO : 0);
    ck_assert_int_eq(blk_zero(b, 0, 65536, 0), _i == 2 ? -EIO : 0);
    ck_assert_int_eq(blk_discard(b, 0, 65536), _i == 3 ? -EIO : 0);
    ck_assert_int_eq(blk_flush(b), _i == 4 ? -EIO : 0);
}
END_TEST

static int ignore(const struct extent *e, void *opaque)
{
    (void)e;
    (void)opaque;
    return 0;
}

START_TEST(block_status_fails_when_it_is_asked_for)
{
    open_rules("'inject-error':[{'event':'none','iotype':'block-status'}]");
    ck_assert_int_eq(blk_extents(b, 0, 4096, 0, ignore, NULL), -EIO);
    ck_assert_int_eq(rd(0, 4096), 0);
    stop();
    start();
    open_rules("'inject-error':[{'event':'none'}]");
    ck_assert_int_eq(blk_extents(b, 0, 4096, 0, ignore, NULL), 0);
    ck_assert_int_eq(rd(0, 4096), -EIO);
}
END_TEST

START_TEST(rules_hold_in_their_state)
{
    open_rules("'set-state':[{'event':'write_aio','state':1,'new_state':2}],"
               "'inject-error':[{'event':'read_aio','state':2,'once':true}]");
    ck_assert_int_eq(rd(0, 512), 0);
    ck_assert_int_eq(wr(0, 512), 0);
    ck_assert_int_eq(rd(0, 512), -EIO);
    ck_assert_int_eq(rd(0, 512), 0);
}
END_TEST

START_TEST(a_new_state_holds_from_the_next_event_on)
{
    open_rules("'set-state':[{'event':'read_aio','state':1,'new_state':2}],"
               "'inject-error':[{'event':'read_aio','state':2}]");
    ck_assert_int_eq(rd(0, 512), 0);
    ck_assert_int_eq(rd(0, 512), -EIO);
}
END_TEST

START_TEST(what_is_armed_replaces_what_was_armed)
{
    open_rules("'inject-error':[{'event':'read_aio','errno':28},"
               "{'event':'write_aio','errno':1}]");
    ck_assert_int_eq(rd(0, 512), -ENOSPC);
    ck_assert_int_eq(wr(0, 512), -EPERM);
    ck_assert_int_eq(blk_flush(b), -EPERM);
}
END_TEST

START_TEST(a_request_that_must_not_wait_is_sent_back_and_leaves_no_trace)
{
    open_rules("'inject-error':[{'event':'read_aio','once':true}]");
    ck_assert_int_eq(blk_pread(b, buf, 512, 0, REQ_NOWAIT), -EAGAIN);
    ck_assert_int_eq(blk_pwrite(b, buf, 512, 0, REQ_NOWAIT), -EAGAIN);
    ck_assert_int_eq(rd(0, 512), -EIO);
    ck_assert_int_eq(rd(0, 512), 0);
}
END_TEST

START_TEST(flush_to_disk_is_told_when_there_is_something_to_flush)
{
    open_rules("'set-state':[{'event':'flush_to_disk','state':1,"
               "'new_state':2}],'inject-error':[{'event':'read_aio',"
               "'state':2}]");
    ck_assert_int_eq(blk_flush(b), 0);
    ck_assert_int_eq(rd(0, 512), 0);
    ck_assert_int_eq(wr(0, 512), 0);
    ck_assert_int_eq(rd(0, 512), 0);
    ck_assert_int_eq(blk_flush(b), 0);
    ck_assert_int_eq(rd(0, 512), -EIO);
}
END_TEST

START_TEST(a_flush_that_fails_is_tried_again)
{
    open_rules("'inject-error':[{'event':'flush_to_disk','iotype':'flush',"
               "'once':true}]");
    ck_assert_int_eq(wr(0, 512), 0);
    ck_assert_int_eq(blk_flush(b), -EIO);
    ck_assert_int_eq(blk_flush(b), 0);
}
END_TEST

/* --- What formats tell --- */

static void create_qcow2(const char *name, json_t *options)
{
    CLEANUP_ERROR struct error *err = NULL;
    int r = image_create(name, "qcow2", options, &err);

    json_decref(options);
    ck_assert_msg(r == 0, "%s", error_message(err));
}

/* qcow2 over blkdebug with the rule of one event. */
static void open_qcow2(const char *event, const char *more)
{
    char text[1024];

    (void)snprintf(text, sizeof(text),
                   "{\"driver\":\"qcow2\",\"file\":{\"driver\":\"blkdebug\","
                   "\"image\":{\"driver\":\"file\",\"filename\":"
                   "\"disk.qcow2\"},\"inject-error\":[{\"event\":\"%s\"%s}]}}",
                   event, more);
    must_open(text);
}

static void new_qcow2(void)
{
    create_qcow2("disk.qcow2", json_pack("{s:s}", "size", "64M"));
}

START_TEST(reads_of_nothing_are_no_reads_of_data)
{
    new_qcow2();
    open_qcow2("read_aio", "");
    ck_assert_int_eq(rd(0, 65536), 0);
    ck_assert_int_eq(wr(65536, 65536), 0);
    ck_assert_int_eq(blk_zero(b, 131072, 65536, 0), 0);
    ck_assert_int_eq(rd(131072, 65536), 0);
    ck_assert_int_eq(rd(0, 65536), 0);
    ck_assert_int_eq(rd(65536, 512), -EIO);
}
END_TEST

START_TEST(qcow2_tells_what_it_does)
{
    static const struct {
        const char *event;
        bool write, flush; /* what fails */
    } cases[] = {
        {"l2_alloc_write", true, false},
        {"cluster_alloc", true, false},
        {"refblock_load", true, false},
        {"write_aio", true, false},
        {"cow_write", false, false}, /* there is nothing to copy */
        {"cow_read", false, false},
        {"flush_to_os", false, true},
        {"refblock_update_part", false, true},
        {"l2_update", false, true},
        {"l1_update", false, true},
        {"flush_to_disk", false, true},
        {"reftable_grow", false, false},
    };

    new_qcow2();
    open_qcow2(cases[_i].event, ",\"once\":true");
    ck_assert_int_eq(wr(4096, 4096), cases[_i].write ? -EIO : 0);
    ck_assert_int_eq(wr(4096, 4096), 0);
    ck_assert_int_eq(blk_flush(b), cases[_i].flush ? -EIO : 0);
    ck_assert_int_eq(blk_flush(b), 0);
    ck_assert_int_eq(rd(0, 65536), 0);
}
END_TEST

START_TEST(tables_are_told_when_they_are_loaded)
{
    new_qcow2();
    open_qcow2("l2_load", "");
    ck_assert_int_eq(rd(0, 512), 0); /* there is no table yet */
    ck_assert_int_eq(wr(0, 65536), 0);
    ck_assert_int_eq(rd(0, 512), 0);
    stop();
    start();
    open_qcow2("l2_load", ",\"once\":true");
    ck_assert_int_eq(rd(32 * MiB, 512), -EIO);
    ck_assert_int_eq(rd(32 * MiB, 512), 0);
}
END_TEST

START_TEST(old_data_is_told_when_it_is_copied)
{
    create_qcow2("lower.qcow2", json_pack("{s:s}", "size", "64M"));
    must_open("driver=qcow2,file.driver=file,file.filename=lower.qcow2");
    memset(buf, 7, 65536);
    ck_assert_int_eq(wr(0, 65536), 0);
    blk_free(b);
    b = NULL;
    graph_free(g);
    start();
    create_qcow2("disk.qcow2",
                 json_pack("{s:s, s:s}", "backing_file", "lower.qcow2",
                           "backing_fmt", "qcow2"));
    open_qcow2("read_backing_aio", ",\"once\":true");
    ck_assert_int_eq(rd(65536, 512), 0);
    ck_assert_int_eq(rd(0, 512), 0); /* of another file: it arms the rule */
    ck_assert_int_eq(wr(65536, 65536), -EIO);
    stop();
    start();
    open_qcow2("cow_read", ",\"once\":true");
    ck_assert_int_eq(wr(4096, 4096), -EIO);
    ck_assert_int_eq(wr(4096, 4096), 0);
    ck_assert_int_eq(rd(0, 8192), 0);
    ck_assert_int_eq(buf[0], 7);
}
END_TEST

START_TEST(an_image_grows_through_the_filter)
{
    static char in[300000];
    CLEANUP_FREE char *out = malloc(sizeof(in));

    memset(in, 5, sizeof(in));
    new_qcow2();
    open_qcow2("none", ",\"errno\":0");
    ck_assert_int_eq(blk_pwrite(b, in, sizeof(in), 40 * MiB, 0), 0);
    stop();
    start();
    must_open("driver=qcow2,file.driver=file,file.filename=disk.qcow2");
    ck_assert_int_eq(blk_pread(b, out, sizeof(in), 40 * MiB, 0), 0);
    ck_assert_mem_eq(in, out, sizeof(in));
}
END_TEST

/* --- Options --- */

START_TEST(rules_come_from_a_file)
{
    write_file("rules", "# what fails\n\n[inject-error]\n"
                        "event = \"read_aio\"\nerrno = \"28\"\n"
                        "once = \"on\"\nstate = \"2\"\n\n"
                        "[set-state]\nevent = \"write_aio\"\n"
                        "state = \"1\"\nnew_state = \"2\"\n");
    open_rules("'config':'rules'");
    ck_assert_int_eq(rd(0, 512), 0);
    ck_assert_int_eq(wr(0, 512), 0);
    ck_assert_int_eq(rd(0, 512), -ENOSPC);
    ck_assert_int_eq(rd(0, 512), 0);
}
END_TEST

START_TEST(a_bad_file_is_refused_by_line)
{
    static const char *const cases[][2] = {
        {"event = \"read_aio\"\n", "rules:1: no group defined"},
        {"[inject-error]\nevent read_aio\n", "rules:2: parse error"},
        {"[inject-error]\nevent = read_aio\n", "rules:2: parse error"},
        {"\n[inject]\n", "rules:2: There is no option group 'inject'"},
        {"[inject-error]\nerrno = \"5\"\n", "Missing event name for rule"},
        {"[set-state]\nevent = \"read_aio\"\nx = \"1\"\n",
         "a rule of 'set-state' does not take the option 'x'"},
    };

    write_file("rules", cases[_i][0]);
    refuse("'config':'rules'", cases[_i][1]);
}
END_TEST

START_TEST(a_file_that_is_not_there_is_refused)
{
    refuse("'config':'nothing'", "Could not read blkdebug config file: ");
}
END_TEST

START_TEST(bad_options_are_refused_by_name)
{
    static const char *const cases[][2] = {
        {"'inject-error':[{'event':'reed_aio'}]",
         "Parameter 'event' does not accept value 'reed_aio'"},
        {"'inject-error':[{}]", "Missing event name for rule"},
        {"'inject-error':{'event':'none'}", "must be an array"},
        {"'inject-error':[5]", "must be an array of objects"},
        {"'inject-error':[{'event':'none','errno':5000}]", "'errno'"},
        {"'inject-error':[{'event':'none','iotype':'seek'}]", "'iotype'"},
        {"'inject-error':[{'event':'none','new_state':5}]", "'new_state'"},
        {"'set-state':[{'event':'none','errno':5}]", "'errno'"},
        {"'align':3", "Cannot meet constraints with align 3"},
        {"'align':4096,'max-transfer':512",
         "Cannot meet constraints with max-transfer 512"},
        {"'align':512,'opt-write-zero':513",
         "Cannot meet constraints with opt-write-zero 513"},
        {"'opt-write-zero':1024,'max-write-zero':512",
         "Cannot meet constraints with max-write-zero 512"},
        {"'align':512,'opt-discard':1",
         "Cannot meet constraints with opt-discard 1"},
        {"'opt-discard':1024,'max-discard':1025",
         "Cannot meet constraints with max-discard 1025"},
        {"'take-child-perms':['fly']", "does not accept value 'fly'"},
        {"'unshare-child-perms':'write'", "must be an array"},
        {"'colour':'red'", "does not take the option 'colour'"},
    };

    refuse(cases[_i][0], cases[_i][1]);
}
END_TEST

START_TEST(dotted_keys_make_rules)
{
    must_open("driver=raw,file.driver=blkdebug,file.image.driver=mem,"
              "file.image.size=1M,file.inject-error.0.event=read_aio,"
              "file.inject-error.0.errno=28,file.inject-error.1.event="
              "write_aio");
    ck_assert_int_eq(wr(0, 512), -EIO);
    ck_assert_int_eq(rd(0, 512), -ENOSPC);
}
END_TEST

static void open_name(const char *name, struct error **errp)
{
    CLEANUP_JSON json_t *o = NULL;
    struct node *n;

    ck_assert_int_eq(options_from_image(name, "raw", &o, NULL), 0);
    if (graph_open(g, o, &n, errp) == 0) {
        ck_assert_int_eq(blk_new(g, n, PERM_ALL, PERM_ALL, "test", &b, NULL),
                         0);
    }
}

START_TEST(a_file_name_names_rules_and_image)
{
    struct error *err = NULL;

    memset(buf, 'x', 4096);
    buf[4096] = '\0';
    write_file("disk.raw", buf);
    write_file("rules", "[inject-error]\nevent = \"read_aio\"\n");
    open_name("blkdebug:rules:disk.raw", NULL);
    ck_assert_int_eq(rd(0, 512), -EIO);
    stop();
    start();
    open_name("blkdebug::disk.raw", NULL);
    ck_assert_int_eq(rd(0, 512), 0);
    ck_assert_int_eq(buf[0], 'x');
    stop();
    start();
    open_name("blkdebug:disk.raw", &err);
    ck_assert_str_eq(error_message(err),
                     "blkdebug requires both config file and image path");
    error_free(err);
}
END_TEST

START_TEST(an_image_cannot_ask_for_it)
{
    struct error *err = NULL;
    struct node *n;

    write_file("rules", "[inject-error]\nevent = \"none\"\n");
    write_file("lower", "x");
    create_qcow2("disk.qcow2",
                 json_pack("{s:s, s:s, s:s, s:b}", "size", "1M", "backing_file",
                           "file:blkdebug:rules:lower", "backing_fmt", "raw",
                           "backing_unchecked", 1));
    int r = open_json("driver=qcow2,file.driver=file,file.filename=disk.qcow2",
                      &n, &err);
    ck_assert_int_eq(r, -ENOENT); /* of a file with that name */
    error_free(err);
}
END_TEST

START_TEST(limits_are_kept_and_the_data_is_right)
{
    CLEANUP_FREE char *in = malloc(1 * MiB);

    open_rules("'align':4096,'max-transfer':12288,'opt-write-zero':24576,"
               "'max-write-zero':24576,'opt-discard':24576,"
               "'max-discard':24576");
    memset(in, 9, 1 * MiB);
    ck_assert_int_eq(blk_pwrite(b, in, 1 * MiB, 0, 0), 0);
    ck_assert_int_eq(blk_zero(b, 1000, 100000, 0), 0);
    memset(in + 1000, 0, 100000);
    ck_assert_int_eq(blk_pwrite(b, in + 200001, 77, 200001, 0), 0);
    ck_assert_int_eq(rd(0, 1 * MiB), 0);
    ck_assert_mem_eq(in, buf, 1 * MiB);
    ck_assert_int_eq(blk_discard(b, 300000, 24576 * 3), 0);
    ck_assert_int_eq(rd(0, 1 * MiB), 0);
    for (size_t i = 0; i < 1 * MiB; i++) {
        bool whole = i >= 319488 && i < 368640; /* units in the range */
        if (whole ? buf[i] != 9 && buf[i] != 0 : buf[i] != in[i]) {
            ck_abort_msg("%d at %zu", buf[i], i);
        }
    }
}
END_TEST

START_TEST(a_disk_that_ends_within_a_block_keeps_its_size)
{
    write_file("disk.raw", "abc");
    must_open("driver=raw,file.driver=blkdebug,file.align=512,"
              "file.image.driver=file,file.image.filename=disk.raw");
    ck_assert_int_eq(blk_pwrite(b, "B", 1, 1, 0), 0);
    ck_assert_int_eq(rd(0, 3), 0);
    ck_assert_mem_eq(buf, "aBc", 3);
    stop();
    start();
    must_open("driver=raw,file.driver=file,file.filename=disk.raw");
    ck_assert_uint_eq(blk_size(b), 3);
}
END_TEST

START_TEST(permissions_can_be_taken_and_denied)
{
    CLEANUP_ERROR struct error *err = NULL;
    struct node *n;

    ck_assert_int_eq(
        open_json("driver=mem,size=1M,node-name=mem,read-only=off", &n, NULL),
        0);
    ck_assert_int_eq(open_json("driver=blkdebug,node-name=a,read-only=on,"
                               "image=mem,unshare-child-perms.0=write",
                               &n, NULL),
                     0);
    ck_assert_int_eq(open_json("driver=blkdebug,image=mem,read-only=on,"
                               "take-child-perms.0=consistent-read",
                               &n, NULL),
                     0);
    ck_assert_int_eq(open_json("driver=blkdebug,image=mem,read-only=on,"
                               "take-child-perms.0=write",
                               &n, &err),
                     -EBUSY);
}
END_TEST

/* --- Breakpoints --- */

struct request {
    pthread_t thread;
    int result;
};

static void *run_read(void *opaque)
{
    struct request *r = opaque;
    char data[512];

    r->result = blk_pread(b, data, sizeof(data), 0, 0);
    return NULL;
}

static void send_read(struct request *r)
{
    r->result = 1;
    ck_assert_int_eq(thread_start(&r->thread, "reader", run_read, r), 0);
}

static int finish(struct request *r)
{
    thread_join(r->thread);
    return r->result;
}

START_TEST(a_breakpoint_holds_up_a_request_until_it_is_resumed)
{
    struct request r;
    struct node *n;

    open_rules("");
    n = blk_node(b);
    ck_assert_int_eq(blkdebug_break(n, "read_aio", "A", NULL), 0);
    ck_assert_int_eq(blkdebug_resume(n, "A", NULL), -ENOENT);
    ck_assert_int_eq(wr(0, 512), 0);
    ck_assert(!blkdebug_is_suspended(n, "A"));
    send_read(&r);
    ck_assert(blkdebug_wait_break(n, "A", LONG_MS));
    ck_assert(!blkdebug_is_suspended(n, "B"));
    ck_assert_int_eq(rd(0, 512), 0); /* one request only */
    ck_assert_int_eq(blkdebug_resume(n, "B", NULL), -ENOENT);
    ck_assert_int_eq(r.result, 1);
    ck_assert_int_eq(blkdebug_resume(n, "A", NULL), 0);
    ck_assert_int_eq(finish(&r), 0);
    ck_assert(!blkdebug_is_suspended(n, "A"));
}
END_TEST

START_TEST(removing_a_breakpoint_resumes_its_requests)
{
    struct request r[2];
    struct node *n;

    open_rules("");
    n = blk_node(b);
    for (int i = 0; i < 2; i++) {
        ck_assert_int_eq(blkdebug_break(n, "read_aio", "A", NULL), 0);
        send_read(&r[i]);
        if (i == 0) {
            ck_assert(blkdebug_wait_break(n, "A", LONG_MS));
        }
    }
    ck_assert_int_eq(blkdebug_break(n, "write_aio", "B", NULL), 0);
    ck_assert_int_eq(blkdebug_break(n, "write_aio", "C", NULL), 0);
    ck_assert_int_eq(blkdebug_remove_break(n, "A", NULL), 0);
    ck_assert_int_eq(finish(&r[0]), 0);
    ck_assert_int_eq(finish(&r[1]), 0);
    ck_assert_int_eq(blkdebug_remove_break(n, "A", NULL), -ENOENT);
    ck_assert_int_eq(blkdebug_remove_break(n, "B", NULL), 0);
    ck_assert_int_eq(blkdebug_remove_break(n, "C", NULL), 0);
    ck_assert_int_eq(wr(0, 512), 0);
}
END_TEST

START_TEST(draining_resumes_and_the_next_breakpoint_holds_again)
{
    struct request r;
    struct node *n;

    open_rules("");
    n = blk_node(b);
    ck_assert_int_eq(blkdebug_break(n, "read_aio", "A", NULL), 0);
    send_read(&r);
    ck_assert(blkdebug_wait_break(n, "A", LONG_MS));
    graph_lock(g);
    graph_drain(g, n);
    graph_unlock(g);
    ck_assert_int_eq(finish(&r), 0);
    ck_assert_int_eq(blkdebug_break(n, "read_aio", "A", NULL), 0);
    send_read(&r);
    ck_assert(blkdebug_wait_break(n, "A", LONG_MS));
    ck_assert_int_eq(blkdebug_resume(n, "A", NULL), 0);
    ck_assert_int_eq(finish(&r), 0);
}
END_TEST

START_TEST(breakpoints_need_a_node_and_an_event)
{
    CLEANUP_ERROR struct error *err = NULL;

    open_rules("");
    ck_assert_int_eq(blkdebug_break(blk_node(b), "reed_aio", "A", &err),
                     -ENOENT);
    ck_assert_int_eq(blkdebug_remove_break(blk_node(b), "A", &err), -ENOENT);
    must_open("driver=mem,size=1M");
    ck_assert_int_eq(blkdebug_break(blk_node(b), "read_aio", "A", &err),
                     -ENOTSUP);
    ck_assert_int_eq(blkdebug_resume(blk_node(b), "A", &err), -ENOTSUP);
    ck_assert(!blkdebug_is_suspended(blk_node(b), "A"));
}
END_TEST

START_TEST(a_breakpoint_in_a_closed_node_is_gone)
{
    open_rules("");
    ck_assert_int_eq(blkdebug_break(blk_node(b), "flush_to_os", "A", NULL), 0);
    ck_assert_int_eq(wr(0, 512), 0); /* so that closing flushes */
}
END_TEST

int main(void)
{
    Suite *s = suite_create("blkdebug");
    TCase *tc = tcase_create("blkdebug");

    tcase_add_checked_fixture(tc, start, stop);
    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, an_event_arms_errors_for_the_requests_that_follow);
    tcase_add_test(tc, an_error_that_comes_once_does_not_come_again);
    tcase_add_test(tc, an_errno_of_zero_fails_nothing);
    tcase_add_test(tc, a_sector_fails_requests_that_touch_it);
    tcase_add_loop_test(tc, an_iotype_fails_only_requests_of_its_kind, 0, 5);
    tcase_add_test(tc, block_status_fails_when_it_is_asked_for);
    tcase_add_test(tc, rules_hold_in_their_state);
    tcase_add_test(tc, a_new_state_holds_from_the_next_event_on);
    tcase_add_test(tc, what_is_armed_replaces_what_was_armed);
    tcase_add_test(
        tc, a_request_that_must_not_wait_is_sent_back_and_leaves_no_trace);
    tcase_add_test(tc, flush_to_disk_is_told_when_there_is_something_to_flush);
    tcase_add_test(tc, a_flush_that_fails_is_tried_again);
    tcase_add_test(tc, reads_of_nothing_are_no_reads_of_data);
    tcase_add_loop_test(tc, qcow2_tells_what_it_does, 0, 12);
    tcase_add_test(tc, tables_are_told_when_they_are_loaded);
    tcase_add_test(tc, old_data_is_told_when_it_is_copied);
    tcase_add_test(tc, an_image_grows_through_the_filter);
    tcase_add_test(tc, rules_come_from_a_file);
    tcase_add_loop_test(tc, a_bad_file_is_refused_by_line, 0, 6);
    tcase_add_test(tc, a_file_that_is_not_there_is_refused);
    tcase_add_loop_test(tc, bad_options_are_refused_by_name, 0, 17);
    tcase_add_test(tc, dotted_keys_make_rules);
    tcase_add_test(tc, a_file_name_names_rules_and_image);
    tcase_add_test(tc, an_image_cannot_ask_for_it);
    tcase_add_test(tc, limits_are_kept_and_the_data_is_right);
    tcase_add_test(tc, a_disk_that_ends_within_a_block_keeps_its_size);
    tcase_add_test(tc, permissions_can_be_taken_and_denied);
    tcase_add_test(tc, a_breakpoint_holds_up_a_request_until_it_is_resumed);
    tcase_add_test(tc, removing_a_breakpoint_resumes_its_requests);
    tcase_add_test(tc, draining_resumes_and_the_next_breakpoint_holds_again);
    tcase_add_test(tc, breakpoints_need_a_node_and_an_event);
    tcase_add_test(tc, a_breakpoint_in_a_closed_node_is_gone);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
