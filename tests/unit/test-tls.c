/* SPDX-License-Identifier: BSD-3-Clause */
/* TLS sessions against a client of gnutls's own: records, keys, and ends. */
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <gnutls/gnutls.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "nbdelta/bytes.h"
#include "nbdelta/error.h"
#include "nbdelta/tls-creds.h"
#include "net/tls.h"

#define KEY    "00112233445566778899aabbccddeeff"
#define RECORD 16384

static struct tls *server;
static gnutls_session_t client;
static gnutls_psk_client_credentials_t client_cred;
static int fds[2]; /* of the server, of the client */

static void make_client(const char *versions)
{
    const gnutls_datum_t key = {(unsigned char *)(uintptr_t)KEY, strlen(KEY)};
    char text[200];

    (void)snprintf(text, sizeof(text), "NORMAL:+ECDHE-PSK:+PSK%s", versions);
    ck_assert_int_eq(gnutls_psk_allocate_client_credentials(&client_cred), 0);
    ck_assert_int_eq(gnutls_psk_set_client_credentials(
                         client_cred, "alice", &key, GNUTLS_PSK_KEY_HEX),
                     0);
    ck_assert_int_eq(gnutls_init(&client, GNUTLS_CLIENT | GNUTLS_NONBLOCK), 0);
    ck_assert_int_eq(gnutls_priority_set_direct(client, text, NULL), 0);
    ck_assert_int_eq(
        gnutls_credentials_set(client, GNUTLS_CRD_PSK, client_cred), 0);
    gnutls_transport_set_int(client, fds[1]);
}

/* Both ends, one after the other, until both are done. */
static void shake_hands(void)
{
    int a = -EAGAIN;
    int b = GNUTLS_E_AGAIN;

    for (int i = 0; i < 100 && (a != 0 || b != 0); i++) {
        b = b == 0 ? 0 : gnutls_handshake(client);
        ck_assert(b == 0 || b == GNUTLS_E_AGAIN);
        a = a == 0 ? 0 : tls_handshake(server, NULL);
        ck_assert(a == 0 || a == -EAGAIN);
    }
    ck_assert(a == 0 && b == 0);
}

static void open_server(void)
{
    struct tls_keys *keys;
    FILE *f = fopen("keys.psk", "w");

    ck_assert_ptr_nonnull(f);
    (void)fprintf(f, "bob:%s\nalice:%s\n", "ffff", KEY);
    ck_assert_int_eq(fclose(f), 0);
    ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds),
                     0);
    ck_assert_int_eq(fcntl(fds[1], F_SETFL, O_NONBLOCK), 0);
    ck_assert_int_eq(tls_keys_load_psk("keys.psk", &keys, NULL), 0);
    server = tls_new(keys, fds[0], NULL);
    ck_assert_ptr_nonnull(server);
    tls_keys_unref(keys);
}

static void setup(void)
{
    open_server();
    make_client("");
    shake_hands();
}

static void teardown(void)
{
    gnutls_deinit(client);
    gnutls_psk_free_client_credentials(client_cred);
    tls_free(server);
    (void)close(fds[0]);
    (void)close(fds[1]);
    (void)unlink("keys.psk");
}

static ssize_t receive(void *buf, size_t size)
{
    struct iovec iov = {buf, size};

    return tls_receive(server, &iov, 1, false);
}

static void say(const char *text)
{
    ck_assert_int_eq(gnutls_record_send(client, text, strlen(text)),
                     (ssize_t)strlen(text));
}

static void hears(const char *text)
{
    char buf[100] = "";

    ck_assert_int_eq(receive(buf, sizeof(buf)), (ssize_t)strlen(text));
    ck_assert_str_eq(buf, text);
}

static void answer(const char *text)
{
    struct iovec iov = {(char *)(uintptr_t)text, strlen(text)};
    char buf[100] = "";
    ssize_t n = GNUTLS_E_AGAIN;

    ck_assert_int_eq(tls_send(server, &iov, 1), (ssize_t)strlen(text));
    ck_assert(!tls_unsent(server));
    /* After new keys "again" is said once. */
    for (int i = 0; i < 2 && n == GNUTLS_E_AGAIN; i++) {
        n = gnutls_record_recv(client, buf, sizeof(buf));
    }
    ck_assert_int_eq(n, (ssize_t)strlen(text));
    ck_assert_str_eq(buf, text);
}

START_TEST(both_hear_each_other)
{
    ck_assert_str_eq(tls_identity(server), "alice");
    ck_assert_int_eq(receive(&(char){0}, 1), -EAGAIN);
    say("hello");
    hears("hello");
    answer("and hello to you");
    tls_trim(server);
    say("again");
    hears("again");
    answer("again");
}
END_TEST

/* A part of a record is kept for the next call, whatever a poll would say. */
START_TEST(small_bites_of_a_record)
{
    char c;

    say("abcdef");
    for (const char *p = "abcdef"; *p; p++) {
        ck_assert_int_eq(receive(&c, 1), 1);
        ck_assert_int_eq(c, *p);
    }
    ck_assert_int_eq(receive(&c, 1), -EAGAIN);
}
END_TEST

START_TEST(one_call_takes_many_records)
{
    char a[4];
    char b[100];
    struct iovec iov[2] = {{a, sizeof(a)}, {b, sizeof(b)}};

    say("abc");
    say("def");
    say("ghi");
    ck_assert_int_eq(tls_receive(server, iov, 2, false), 9);
    ck_assert_int_eq(memcmp(a, "abcd", 4), 0);
    ck_assert_int_eq(memcmp(b, "efghi", 5), 0);
}
END_TEST

/* Sizes of the records that are on the wire. */
static unsigned read_records(size_t *sizes, unsigned max)
{
    static unsigned char raw[1 << 20];
    ssize_t n = recv(fds[1], raw, sizeof(raw), 0);
    unsigned count = 0;

    ck_assert_int_gt(n, 0);
    for (ssize_t at = 0; at < n; count++) {
        ck_assert_uint_lt(count, max);
        ck_assert_int_le(at + 5, n);
        ck_assert_int_eq(raw[at], 23); /* application data */
        sizes[count] = load_be16(raw + at + 3);
        at += 5 + (ssize_t)sizes[count];
    }
    return count;
}

START_TEST(records_are_filled_across_pieces)
{
    static char data[100000];
    struct iovec iov[100];
    size_t sizes[100];

    for (int i = 0; i < 100; i++) {
        iov[i] = (struct iovec){data + 1000 * i, 1000};
    }
    ck_assert_int_eq(tls_send(server, iov, 100), 100000);
    unsigned count = read_records(sizes, 100);
    ck_assert_uint_eq(count, (100000 + RECORD - 1) / RECORD);
    for (unsigned i = 0; i + 1 < count; i++) {
        ck_assert_uint_ge(sizes[i], RECORD);
    }
}
END_TEST

/* What the socket does not take is kept; nothing is taken meanwhile. */
START_TEST(a_client_that_does_not_read)
{
    const size_t size = 4 << 20;
    char *data = malloc(size);
    char *got = malloc(size);
    size_t sent = 0;
    size_t read = 0;
    unsigned stalls = 0;

    ck_assert(data && got);
    for (size_t i = 0; i < size; i++) {
        data[i] = (char)(i * 31 + i / 4096);
    }
    while (read < size) {
        struct iovec iov[3] = {{data + sent, min_u64(size - sent, 28)},
                               {data, 0},
                               {data + sent + 28, size - sent - 28}};
        bool all = sent + 28 >= size;
        ssize_t n = tls_send(server, iov, sent == size ? 0 : all ? 1 : 3);
        if (n > 0) {
            sent += (size_t)n;
            continue;
        }
        ck_assert(n == -EAGAIN || (n == 0 && sent == size));
        ck_assert(tls_unsent(server) == (n == -EAGAIN));
        stalls += n == -EAGAIN;
        n = gnutls_record_recv(client, got + read, size - read);
        if (n != GNUTLS_E_AGAIN) {
            ck_assert_int_gt(n, 0);
            read += (size_t)n;
        }
    }
    ck_assert_uint_gt(stalls, 0);
    ck_assert_int_eq(memcmp(data, got, size), 0);
    free(data);
    free(got);
}
END_TEST

START_TEST(keys_are_updated_from_either_side)
{
    for (int i = 0; i < 4; i++) {
        ck_assert_int_eq(
            gnutls_session_key_update(client, i % 2 ? GNUTLS_KU_PEER : 0), 0);
        say("with new keys");
        hears("with new keys");
        answer("with new keys");
    }
}
END_TEST

START_TEST(a_flood_of_key_updates_ends_it)
{
    char buf[10];
    ssize_t n;

    for (int i = 0; i < 200; i++) {
        ck_assert_int_ge(gnutls_session_key_update(client, GNUTLS_KU_PEER), 0);
    }
    while ((n = receive(buf, sizeof(buf))) > 0) {
    }
    ck_assert_int_eq(n, -EPROTO);
}
END_TEST

static void setup_old(void)
{
    open_server();
    make_client(":-VERS-ALL:+VERS-TLS1.2");
    shake_hands();
}

START_TEST(renegotiation_ends_it)
{
    char buf[10];

    say("hello");
    hears("hello");
    answer("hello");
    ck_assert_int_eq(gnutls_handshake(client), GNUTLS_E_AGAIN);
    ck_assert_int_eq(receive(buf, sizeof(buf)), -EPROTO);
}
END_TEST

START_TEST(an_end_that_is_told)
{
    char buf[10];

    say("bye");
    ck_assert_int_eq(gnutls_bye(client, GNUTLS_SHUT_WR), 0);
    hears("bye");
    ck_assert_int_eq(receive(buf, sizeof(buf)), 0);
    answer("replies still come");
    tls_end(server, false);
    ck_assert_int_eq(gnutls_record_recv(client, buf, sizeof(buf)), 0);
    struct iovec iov = {buf, sizeof(buf)};
    ck_assert_int_eq(tls_send(server, &iov, 1), -EPIPE);
}
END_TEST

START_TEST(an_end_without_a_word)
{
    char buf[10];

    say("bye");
    ck_assert_int_eq(shutdown(fds[1], SHUT_RDWR), 0);
    hears("bye");
    ck_assert_int_eq(receive(buf, sizeof(buf)), 0);
}
END_TEST

START_TEST(who_is_not_wanted_is_told)
{
    char buf[10];

    tls_end(server, true);
    ck_assert_int_eq(gnutls_record_recv(client, buf, sizeof(buf)),
                     GNUTLS_E_FATAL_ALERT_RECEIVED);
    ck_assert_int_eq(gnutls_alert_get(client), GNUTLS_A_ACCESS_DENIED);
}
END_TEST

/* Between the two a byte is changed. */
START_TEST(a_changed_record_ends_it)
{
    char buf[100];
    char raw[200];

    say("hello");
    ssize_t n = recv(fds[0], raw, sizeof(raw), 0);
    ck_assert_int_gt(n, 10);
    raw[n - 1] ^= 1;
    ck_assert_int_eq(send(fds[1], raw, (size_t)n, 0), n);
    ck_assert_int_eq(receive(buf, sizeof(buf)), -EPROTO);
    ck_assert_int_eq(receive(buf, sizeof(buf)), -EPROTO);
}
END_TEST

START_TEST(a_record_byte_by_byte)
{
    char buf[100];
    char raw[200];

    say("slowly");
    ssize_t n = recv(fds[0], raw, sizeof(raw), 0);
    for (ssize_t i = 0; i < n; i++) {
        ck_assert_int_eq(receive(buf, sizeof(buf)), -EAGAIN);
        ck_assert_int_eq(send(fds[1], raw + i, 1, 0), 1);
    }
    hears("slowly");
}
END_TEST

START_TEST(garbage_instead_of_a_handshake)
{
    struct error *err = NULL;
    char buf[65536];

    memset(buf, _i == 0 ? 0 : _i == 1 ? 0xff : 0x16, sizeof(buf));
    gnutls_deinit(client);
    gnutls_psk_free_client_credentials(client_cred);
    tls_free(server);
    (void)close(fds[0]);
    (void)close(fds[1]);
    open_server();
    make_client("");
    ck_assert_int_gt(send(fds[1], buf, sizeof(buf), 0), 0);
    ck_assert_int_eq(tls_handshake(server, &err), -EPROTO);
    ck_assert_ptr_nonnull(strstr(error_message(err), "TLS handshake failed: "));
    ck_assert(_i > 0 || strstr(error_message(err), "sends is not TLS"));
    error_free(err);
    /* An alert, and no more. */
    ck_assert_int_le(recv(fds[1], buf, sizeof(buf), 0), 7);
}
END_TEST

/* --- Keys of a client. --- */

static int load(const char *content, const char *user, struct error **errp)
{
    const struct tls_creds c = {.kind = TLS_PSK, .dir = ".", .username = user};
    struct tls_keys *keys;
    FILE *f = fopen("keys.psk", "w");

    ck_assert_ptr_nonnull(f);
    ck_assert_int_ge(fputs(content, f), 0);
    ck_assert_int_eq(fclose(f), 0);
    int r = tls_keys_load(&c, NULL, &keys, errp);
    (void)unlink("keys.psk");
    if (r == 0) {
        tls_keys_unref(keys);
    }
    return r;
}

static const struct {
    const char *content;
    int code;
} key_files[] = {
    {"alice:" KEY "\n", 0},   {"alice:" KEY, 0},
    {"alice:" KEY "\r\n", 0}, {"alicia:00\nalice:" KEY "\n", 0},
    {"\n\n:\nalice:" KEY, 0}, {"", -ENOENT},
    {"alice", -ENOENT},       {"alicea:" KEY, -ENOENT},
    {"alice:xyz\n", -EINVAL},
};

START_TEST(a_key_is_found_by_its_user)
{
    ck_assert_int_eq(load(key_files[_i].content, "alice", NULL),
                     key_files[_i].code);
}
END_TEST

START_TEST(a_user_that_is_not_there_is_told)
{
    struct error *err = NULL;

    ck_assert_int_eq(load("a:00\n", "bob", &err), -ENOENT);
    ck_assert_str_eq(error_message(err),
                     "Username bob not found in PSK file ./keys.psk");
    error_free(err);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("tls");
    TCase *tc = tcase_create("sessions");

    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, both_hear_each_other);
    tcase_add_test(tc, small_bites_of_a_record);
    tcase_add_test(tc, one_call_takes_many_records);
    tcase_add_test(tc, records_are_filled_across_pieces);
    tcase_add_test(tc, a_client_that_does_not_read);
    tcase_add_test(tc, keys_are_updated_from_either_side);
    tcase_add_test(tc, a_flood_of_key_updates_ends_it);
    tcase_add_test(tc, an_end_that_is_told);
    tcase_add_test(tc, an_end_without_a_word);
    tcase_add_test(tc, who_is_not_wanted_is_told);
    tcase_add_test(tc, a_changed_record_ends_it);
    tcase_add_test(tc, a_record_byte_by_byte);
    tcase_add_loop_test(tc, garbage_instead_of_a_handshake, 0, 3);
    suite_add_tcase(s, tc);
    tc = tcase_create("TLS 1.2");
    tcase_add_checked_fixture(tc, setup_old, teardown);
    tcase_add_test(tc, both_hear_each_other);
    tcase_add_test(tc, records_are_filled_across_pieces);
    tcase_add_test(tc, renegotiation_ends_it);
    suite_add_tcase(s, tc);
    tc = tcase_create("keys");
    tcase_add_loop_test(tc, a_key_is_found_by_its_user, 0,
                        sizeof(key_files) / sizeof(key_files[0]));
    tcase_add_test(tc, a_user_that_is_not_there_is_told);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
