/* SPDX-License-Identifier: BSD-3-Clause */
/* nbdelta info: what an image, or an export of a server, is. */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <libnbd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/commands.h"
#include "cli/image-open.h"
#include "cli/nbd-client.h"
#include "cli/snapshot-list.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "nbdelta/size.h"
#include "nbdelta/text.h"

#define OPT_OUTPUT   CLI_LONG
#define OPT_SNAPSHOT (CLI_LONG + 1)

static const struct cli_option option_table[] = {
    {"format", 'f', "FORMAT", "format of the image (default: look at it)"},
    {"force-share", 'U', NULL,
     "open it even while another process writes to it"},
    {"snapshot", OPT_SNAPSHOT, "SNAPSHOT",
     "of the image's snapshot with this id or name"},
    {"output", OPT_OUTPUT, "human|json",
     "print for people (default), or for programs"},
    {NULL, 0, NULL, NULL},
};

static const struct cli_command command = {
    .name = "info",
    .usage = "[-U] [-f FORMAT] [--snapshot SNAPSHOT] [--output human|json] "
             "IMAGE|URI",
    .about = "Print the format, size and properties of a disk image, or what\n"
             "the NBD server at a URI offers.\n",
    .options = option_table,
    .operands = "IMAGE|URI",
};

/* --- For people --- */

/* Names in "format-specific" have dashes; people get words. */
static void print_key(const char *key, int indent)
{
    printf("%*s", indent, "");
    for (; *key; key++) {
        putchar(*key == '-' ? ' ' : *key);
    }
    putchar(':');
}

static void print_value(json_t *value, int indent);

static void print_members(json_t *object, int indent)
{
    const char *key;
    json_t *value;

    json_object_foreach (object, key, value) {
        print_key(key, indent);
        print_value(value, indent);
    }
}

static void print_string(const char *text)
{
    CLEANUP_FREE char *shown = text_printable(text);
    printf(" %s\n", shown ? shown : "?");
}

static void print_value(json_t *value, int indent)
{
    switch (json_typeof(value)) {
    case JSON_OBJECT:
        putchar('\n');
        print_members(value, indent + 4);
        break;
    case JSON_ARRAY:
        putchar('\n');
        for (size_t i = 0; i < json_array_size(value); i++) {
            printf("%*s[%zu]:", indent + 4, "", i);
            print_value(json_array_get(value, i), indent + 4);
        }
        break;
    case JSON_STRING:
        print_string(json_string_value(value));
        break;
    case JSON_INTEGER:
        printf(" %" JSON_INTEGER_FORMAT "\n", json_integer_value(value));
        break;
    case JSON_REAL:
        printf(" %g\n", json_real_value(value));
        break;
    case JSON_TRUE:
    case JSON_FALSE:
        puts(json_is_true(value) ? " true" : " false");
        break;
    case JSON_NULL:
    default:
        puts(" none");
        break;
    }
}

static void print_named(const json_t *info, const char *key, const char *label)
{
    const char *text = json_string_value(json_object_get(info, key));

    if (text) {
        printf("%s:", label);
        print_string(text);
    }
}

static void print_backing(const json_t *info)
{
    const char *name =
        json_string_value(json_object_get(info, "backing-filename"));
    const char *full =
        json_string_value(json_object_get(info, "full-backing-filename"));

    if (!name) {
        return;
    }
    CLEANUP_FREE char *shown = text_printable(name);
    CLEANUP_FREE char *path = text_printable(full ? full : name);
    printf("backing file: %s", shown ? shown : "?");
    if (path && shown && strcmp(path, shown) != 0) {
        printf(" (actual path: %s)", path);
    }
    putchar('\n');
    print_named(info, "backing-filename-format", "backing file format");
}

static void print_image(const json_t *info)
{
    char human[32];
    const json_t *size = json_object_get(info, "virtual-size");
    const json_t *disk = json_object_get(info, "actual-size");
    const json_t *cluster = json_object_get(info, "cluster-size");
    json_t *specific = json_object_get(json_object_get(info, "format-specific"),
                                       "data");
    uint64_t bytes = (uint64_t)json_integer_value(size);

    print_named(info, "filename", "image");
    print_named(info, "format", "file format");
    printf("virtual size: %s (%" PRIu64 " bytes)\n",
           size_human(bytes, human, sizeof(human)), bytes);
    if (disk) {
        bytes = (uint64_t)json_integer_value(disk);
        size_human(bytes, human, sizeof(human));
    }
    printf("disk size: %s\n", disk ? human : "unavailable");
    if (json_is_true(json_object_get(info, "encrypted"))) {
        puts("encrypted: yes");
    }
    if (cluster) {
        printf("cluster_size: %" JSON_INTEGER_FORMAT "\n",
               json_integer_value(cluster));
    }
    if (json_is_true(json_object_get(info, "dirty-flag"))) {
        puts("cleanly shut down: no");
    }
    print_backing(info);
    snapshot_list_print(json_object_get(info, "snapshots"));
    if (specific) {
        puts("Format specific information:");
        print_members(specific, 4);
    }
}

/* --- Images --- */

static int query_image(const struct image_open *o, json_t **info,
                       struct error **errp)
{
    CLEANUP_GRAPH struct graph *g = graph_new();
    struct node *n;

    if (!g) {
        return error_nomem(errp);
    }
    int r = image_open(g, o, &n, errp);
    if (r == 0) {
        *info = node_image_info(g, n);
        r = *info ? 0 : error_nomem(errp);
    }
    return r;
}

/* --- Exports of servers --- */

static int note_context(void *opaque, const char *name)
{
    return json_array_append_new(opaque, json_string(name));
}

static void add_flags(struct nbd_handle *h, json_t *info)
{
    static const struct {
        const char *name;
        int (*ask)(struct nbd_handle *h);
    } flags[] = {
        {"read-only", nbd_is_read_only},
        {"rotational", nbd_is_rotational},
        {"flush", nbd_can_flush},
        {"fua", nbd_can_fua},
        {"trim", nbd_can_trim},
        {"write-zeroes", nbd_can_zero},
        {"fast-zero", nbd_can_fast_zero},
        {"cache", nbd_can_cache},
        {"df", nbd_can_df},
        {"multi-conn", nbd_can_multi_conn},
    };

    for (size_t i = 0; i < sizeof(flags) / sizeof(flags[0]); i++) {
        (void)json_object_set_new(info, flags[i].name,
                                  json_boolean(flags[i].ask(h) == 1));
    }
}

static void add_sizes(struct nbd_handle *h, json_t *info)
{
    static const struct {
        const char *name;
        int which;
    } sizes[] = {
        {"minimum", LIBNBD_SIZE_MINIMUM},
        {"preferred", LIBNBD_SIZE_PREFERRED},
        {"maximum", LIBNBD_SIZE_MAXIMUM},
    };
    json_t *block = json_object();

    (void)json_object_set_new(info, "virtual-size",
                              json_integer(nbd_get_size(h)));
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        int64_t bytes = nbd_get_block_size(h, sizes[i].which);
        if (bytes > 0) {
            (void)json_object_set_new(block, sizes[i].name,
                                      json_integer(bytes));
        }
    }
    if (json_object_size(block) > 0) {
        (void)json_object_set(info, "block-size", block);
    }
    json_decref(block);
}

/* Add a string that libnbd has allocated, and free it. */
static void add_text(json_t *info, const char *key, char *text)
{
    if (text && text[0] != '\0') {
        (void)json_object_set_new(info, key, json_string(text));
    }
    free(text);
}

static int export_info(const char *uri, json_t **infop, struct error **errp)
{
    struct nbd_handle *h;
    int r = client_connect(uri, &h, errp);

    if (r < 0) {
        return r;
    }
    CLEANUP_JSON json_t *info = json_object();
    json_t *contexts = json_array();
    nbd_context_callback each = {.callback = note_context,
                                 .user_data = contexts};
    /* Asked for no context, a server lists all of them; an old one has none. */
    if (nbd_aio_is_negotiating(h)) {
        (void)nbd_opt_list_meta_context(h, each);
    }
    r = client_go(h, NULL, NULL, errp);
    if (r == 0) {
        const char *protocol = nbd_get_protocol(h);
        char *name = nbd_get_export_name(h);

        (void)json_object_set_new(info, "uri", json_string(uri));
        (void)json_object_set_new(info, "protocol",
                                  json_string(protocol ? protocol : "?"));
        (void)json_object_set_new(info, "export",
                                  json_string(name ? name : ""));
        free(name);
        add_text(info, "description", nbd_get_export_description(h));
        add_sizes(h, info);
        (void)json_object_set_new(info, "tls",
                                  json_boolean(nbd_get_tls_negotiated(h) == 1));
        (void)json_object_set_new(
            info, "structured-replies",
            json_boolean(nbd_get_structured_replies_negotiated(h) == 1));
        add_flags(h, info);
        (void)json_object_set(info, "contexts", contexts);
        *infop = json_incref(info);
        (void)nbd_shutdown(h, 0);
    }
    json_decref(contexts);
    nbd_close(h);
    return r;
}

static void print_export(json_t *info)
{
    char human[32];
    uint64_t bytes =
        (uint64_t)json_integer_value(json_object_get(info, "virtual-size"));

    print_named(info, "uri", "uri");
    print_named(info, "export", "export");
    printf("virtual size: %s (%" PRIu64 " bytes)\n",
           size_human(bytes, human, sizeof(human)), bytes);
    (void)json_object_del(info, "uri");
    (void)json_object_del(info, "export");
    (void)json_object_del(info, "virtual-size");
    print_members(info, 0);
}

/* --- */

int cmd_info(int argc, char **argv)
{
    CLEANUP_ERROR struct error *err = NULL;
    CLEANUP_JSON json_t *info = NULL;
    struct image_open o = {.header_only = true, .no_bitmaps = true};
    bool json = false;
    int code;

    while ((code = cli_next(&command, argc, argv)) >= 0) {
        if (code == 'f') {
            o.format = optarg;
        } else if (code == 'U') {
            o.force_share = true;
        } else if (code == OPT_SNAPSHOT) {
            o.snapshot = optarg;
        } else if (cli_output_format(&command, optarg, &json) != 0) {
            return CLI_USAGE;
        }
    }
    if (code != CLI_END) {
        return code == CLI_HELP ? EXIT_SUCCESS : CLI_USAGE;
    }
    if (argc - optind != 1) {
        return cli_usage(&command, "give one image or URI");
    }
    o.image = argv[optind];
    bool uri = client_is_uri(o.image);
    if (uri && o.snapshot) {
        return cli_usage(&command, "--snapshot is for images");
    }
    int r = uri ? export_info(o.image, &info, &err)
                : query_image(&o, &info, &err);
    if (r < 0) {
        return cli_error(command.name, err);
    }
    if (json) {
        cli_print_json(info);
    } else if (uri) {
        print_export(info);
    } else {
        print_image(info);
    }
    return cli_finish(command.name);
}
