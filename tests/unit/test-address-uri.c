/* SPDX-License-Identifier: BSD-3-Clause */
/* NBD URIs of listening sockets; libnbd takes them apart again. */
#include <arpa/inet.h>
#include <check.h>
#include <libnbd.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "net/address-uri.h"

static void is(int fd, bool tls, const char *name, const char *expected)
{
    CLEANUP_FREE char *uri = address_uri(fd, tls, name);

    ck_assert_pstr_eq(uri, expected);
}

/* The same, of a socket in this directory. */
static void is_here(int fd, bool tls, const char *name, const char *before,
                    const char *file)
{
    CLEANUP_FREE char *here = realpath(".", NULL);
    CLEANUP_FREE char *expected = NULL;

    ck_assert_int_gt(asprintf(&expected, "%s%s/%s", before, here, file), 0);
    is(fd, tls, name, expected);
}

START_TEST(a_unix_socket_with_odd_names)
{
    const struct sockaddr_un sun = {AF_UNIX, "a b&c?.sock"};
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);

    ck_assert_int_eq(bind(fd, (const struct sockaddr *)&sun, sizeof(sun)), 0);
    is_here(fd, false, "", "nbd+unix:///?socket=", "a%20b%26c%3F.sock");
    is_here(fd, true, "vda@dirty=b0",
            "nbds+unix:///vda@dirty=b0?socket=", "a%20b%26c%3F.sock");
    is_here(fd, false, "100% #1/\xc3\xa4",
            "nbd+unix:///100%25%20%231/%C3%A4?socket=", "a%20b%26c%3F.sock");
    (void)unlink(sun.sun_path);
    is(fd, false, "", "nbd+unix:///?socket=a%20b%26c%3F.sock");
    (void)close(fd);
}
END_TEST

START_TEST(a_unix_socket_without_a_path_has_none)
{
    struct sockaddr_un sun = {AF_UNIX, ""};
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);

    is(fd, false, "x", NULL);
    ck_assert_int_eq(
        bind(fd, (const struct sockaddr *)&sun, sizeof(sa_family_t)),
        0); /* abstract */
    is(fd, false, "x", NULL);
    (void)close(fd);
}
END_TEST

START_TEST(internet_addresses)
{
    struct sockaddr_in in = {.sin_family = AF_INET};
    socklen_t len = sizeof(in);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    char expected[64];

    in.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    ck_assert_int_eq(bind(fd, (const struct sockaddr *)&in, sizeof(in)), 0);
    ck_assert_int_eq(getsockname(fd, (struct sockaddr *)&in, &len), 0);
    (void)snprintf(expected, sizeof(expected), "nbd://127.0.0.1:%u/vda",
                   ntohs(in.sin_port));
    is(fd, false, "vda", expected);
    (void)close(fd);

    struct sockaddr_in6 in6 = {.sin6_family = AF_INET6};
    fd = socket(AF_INET6, SOCK_STREAM, 0);
    if (fd < 0) {
        return; /* a machine without IPv6 */
    }
    len = sizeof(in6);
    ck_assert_int_eq(bind(fd, (const struct sockaddr *)&in6, sizeof(in6)), 0);
    ck_assert_int_eq(getsockname(fd, (struct sockaddr *)&in6, &len), 0);
    (void)snprintf(expected, sizeof(expected), "nbds://localhost:%u/",
                   ntohs(in6.sin6_port));
    is(fd, true, "", expected);
    (void)close(fd);
}
END_TEST

/* libnbd sets the name from a URI before it finds that nobody listens. */
START_TEST(libnbd_reads_the_same_name)
{
    static const char *const names[] = {"vda",
                                        "",
                                        "a b",
                                        "100%",
                                        "x?y#z",
                                        "vda@dirty=b0",
                                        "\xc3\xa4/\xe2\x82\xac"};
    const struct sockaddr_un sun = {AF_UNIX, "nobody.sock"};
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);

    ck_assert_int_eq(bind(fd, (const struct sockaddr *)&sun, sizeof(sun)), 0);
    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        struct nbd_handle *h = nbd_create();
        CLEANUP_FREE char *uri = address_uri(fd, false, names[i]);

        ck_assert_int_eq(nbd_connect_uri(h, uri), -1);
        CLEANUP_FREE char *name = nbd_get_export_name(h);
        ck_assert_pstr_eq(name, names[i]);
        nbd_close(h);
    }
    (void)close(fd);
    (void)unlink(sun.sun_path);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("address-uri");
    TCase *tc = tcase_create("uris");

    tcase_add_test(tc, a_unix_socket_with_odd_names);
    tcase_add_test(tc, a_unix_socket_without_a_path_has_none);
    tcase_add_test(tc, internet_addresses);
    tcase_add_test(tc, libnbd_reads_the_same_name);
    suite_add_tcase(s, tc);

    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_NORMAL);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
