/* SPDX-License-Identifier: BSD-3-Clause */
/* Words of `nbdelta qmp` become arguments of a command: see qmp-args.h. */
#include "cli/qmp-args.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "commands/table.h"
#include "keyval-node.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "nbdelta/option.h"
#include "nbdelta/options.h"
#include "nbdelta/size.h"

#define INPUT_MAX (64 << 20) /* bytes, as QEMU's monitor takes */

static json_t *convert_member(json_t *v, const struct qmp_arg *a);

/* The value that a bare string most likely stands for, where no row tells. */
static json_t *guess(const char *text)
{
    char *end;
    long long n;

    if (strcmp(text, "on") == 0 || strcmp(text, "true") == 0) {
        return json_true();
    }
    if (strcmp(text, "off") == 0 || strcmp(text, "false") == 0) {
        return json_false();
    }
    errno = 0;
    n = strtoll(text, &end, 10);
    if (errno == 0 && *end == '\0' && end != text &&
        strchr("-0123456789", *text)) {
        return json_integer(n);
    }
    return json_string(text);
}

/* A string that does not fit stays one: the other side says what it expects. */
static json_t *convert_number(const char *text)
{
    uint64_t n;

    if (size_parse(text, &n) == 0 && n <= INT64_MAX) {
        return json_integer((json_int_t)n);
    }
    if (text[0] == '-' && size_parse(text + 1, &n) == 0 && n <= INT64_MAX) {
        return json_integer(-(json_int_t)n);
    }
    return json_string(text);
}

static json_t *convert_string(const char *text, enum qmp_type type)
{
    switch (type) {
    case QMP_BOOL:
        if (strcmp(text, "on") == 0 || strcmp(text, "yes") == 0 ||
            strcmp(text, "true") == 0) {
            return json_true();
        }
        if (strcmp(text, "off") == 0 || strcmp(text, "no") == 0 ||
            strcmp(text, "false") == 0) {
            return json_false();
        }
        return json_string(text);
    case QMP_INT:
    case QMP_UINT32:
    case QMP_SIZE:
        return convert_number(text);
    case QMP_ENUMS:
    case QMP_STRS:
    case QMP_STR_OR_OBJECT_ARRAY:
        return json_pack("[s]", text);
    case QMP_END:
        return guess(text);
    default:
        return json_string(text);
    }
}

static bool describes_node(const struct qmp_arg *spec)
{
    while (spec && !qmp_is_last(spec)) {
        spec++;
    }
    return spec && spec->type == QMP_NODE;
}

static bool has_option(const struct option *o, const char *key)
{
    while (o && o->name && strcmp(o->name, key) != 0) {
        o++;
    }
    return o && o->name;
}

/* The options of a node; those that we do not know are guessed at. */
static json_t *convert_node(json_t *object)
{
    CLEANUP_ERROR struct error *err = NULL;
    static const struct qmp_arg unknown = QMP_LAST;
    const char *driver = member_str(object, "driver");
    const struct option *own = driver ? graph_driver_options(driver) : NULL;
    json_t *copy = json_deep_copy(object);
    const char *key;
    json_t *value;

    /* The other side says what is wrong with what stays as it is. */
    (void)keyval_convert_node(copy, &err);
    json_object_foreach (object, key, value) {
        if (copy && strcmp(key, "driver") != 0 && !has_option(own, key) &&
            !has_option(graph_node_options, key) &&
            json_object_set_new(copy, key, convert_member(value, &unknown)) <
                0) {
            json_decref(copy);
            return NULL;
        }
    }
    return copy;
}

/* A copy of @object with its strings turned into what @spec wants; NULL
 * spec: nothing is known.  NULL: no memory. */
static json_t *convert_object(json_t *object, const struct qmp_arg *spec)
{
    static const struct qmp_arg unknown = QMP_LAST;

    if (describes_node(spec)) {
        return convert_node(object);
    }
    json_t *copy = json_object();
    const char *key;
    json_t *value;

    json_object_foreach (object, key, value) {
        const struct qmp_arg *a = qmp_find_arg(spec, object, key);

        if (json_object_set_new(copy, key,
                                convert_member(value, a ? a : &unknown)) < 0) {
            json_decref(copy);
            return NULL;
        }
    }
    return copy;
}

static json_t *convert_nodes(json_t *array)
{
    json_t *copy = json_array();
    json_t *item;
    size_t i;

    json_array_foreach (array, i, item) {
        if (json_array_append_new(copy, json_is_object(item)
                                            ? convert_node(item)
                                            : json_incref(item)) < 0) {
            json_decref(copy);
            return NULL;
        }
    }
    return copy;
}

static json_t *convert_member(json_t *v, const struct qmp_arg *a)
{
    if (json_is_string(v)) {
        return convert_string(json_string_value(v), a->type);
    }
    if (json_is_object(v) && a->type == QMP_NODE_REF) {
        return convert_node(v);
    }
    if (json_is_object(v)) {
        return convert_object(v, a->members);
    }
    if (json_is_array(v) && describes_node(a->members)) {
        return convert_nodes(v);
    }
    return json_incref(v);
}

/* "key=value" words as one list; a comma within a word is only a comma. */
static char *join_words(int argc, char **argv)
{
    size_t len = 1;
    char *text;
    char *out;

    for (int i = 0; i < argc; i++) {
        len += 2 * strlen(argv[i]) + 1;
    }
    text = malloc(len);
    out = text;
    for (int i = 0; text && i < argc; i++) {
        if (i > 0) {
            *out++ = ',';
        }
        for (const char *p = argv[i]; *p; p++) {
            *out++ = *p;
            if (*p == ',') {
                *out++ = ',';
            }
        }
    }
    if (text) {
        *out = '\0';
    }
    return text;
}

/* --- Standard input. --- */

static int read_input(char **text, size_t *len, struct error **errp)
{
    size_t size = 0;
    ssize_t n;

    for (;;) {
        if (*len == size) {
            char *more = realloc(*text, size = size ? 2 * size : 65536);

            if (!more) {
                return error_nomem(errp);
            }
            *text = more;
        }
        n = read(STDIN_FILENO, *text + *len, size - *len);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            return error_set(errp, errno, "cannot read standard input: %s",
                             strerror(errno));
        }
        *len += (size_t)n;
        if (n == 0 || *len > INPUT_MAX) {
            break;
        }
    }
    return *len > INPUT_MAX
               ? error_set(errp, EFBIG,
                           "standard input has more than %d MiB of JSON",
                           INPUT_MAX >> 20)
               : 0;
}

static int parse_input(json_t **args, struct error **errp)
{
    CLEANUP_FREE char *text = NULL;
    size_t len = 0;
    json_error_t e;
    int r = read_input(&text, &len, errp);

    if (r < 0) {
        return r;
    }
    *args = json_loadb(text, len, JSON_REJECT_DUPLICATES, &e);
    if (!*args) {
        return error_set(errp, EINVAL,
                         "standard input: JSON, line %d, column %d: %s", e.line,
                         e.column, e.text);
    }
    return json_is_object(*args)
               ? 0
               : error_set(errp, EINVAL,
                           "standard input: the arguments of a command are an "
                           "object");
}

int qmp_args_parse(const char *command, int argc, char **argv, json_t **args,
                   struct error **errp)
{
    const struct qmp_command *known = qmp_find_command(command);
    CLEANUP_JSON json_t *raw = NULL;
    char *text;
    int r;

    if (argc == 1 && strcmp(argv[0], "-") == 0) {
        return parse_input(args, errp);
    }
    if (argc == 1 && argv[0][0] == '{') {
        return options_parse(argv[0], NULL, args, errp);
    }
    for (int i = 0; i < argc; i++) {
        if (!strchr(argv[i], '=')) {
            return error_set(errp, EINVAL,
                             "'%s' is neither KEY=VALUE nor a JSON object",
                             argv[i]);
        }
    }
    text = join_words(argc, argv);
    if (!text) {
        return error_nomem(errp);
    }
    r = options_parse(text, NULL, &raw, errp);
    free(text);
    if (r < 0) {
        return r;
    }
    *args = convert_object(raw, known ? known->args : NULL);
    return *args ? 0 : error_nomem(errp);
}
