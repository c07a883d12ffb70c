/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * nbdelta bitmap: the persistent bitmaps of an image that nobody serves.
 *
 *   verbs (a word, or options as qemu-img has them) -> steps
 *   steps x names -> actions -> one transaction
 */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/commands.h"
#include "cli/image-open.h"
#include "cli/nbd-client.h"
#include "cli/object-option.h"
#include "nbdelta/action.h"
#include "nbdelta/bitmap.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/graph.h"
#include "nbdelta/size.h"
#include "nbdelta/text.h"
#include "objects/object.h"

enum verb {
    VERB_ADD = CLI_LONG,
    VERB_REMOVE,
    VERB_CLEAR,
    VERB_ENABLE,
    VERB_DISABLE,
    VERB_MERGE,
    VERB_LIST, /* these two are words only */
    VERB_REPAIR,
    OPT_IMAGE_OPTS,
    OPT_OBJECT,
    OPT_OUTPUT,
};

static const struct cli_option option_table[] = {
    {"add", VERB_ADD, NULL, "make an empty bitmap"},
    {"remove", VERB_REMOVE, NULL, "remove the bitmap"},
    {"clear", VERB_CLEAR, NULL, "forget what is dirty"},
    {"enable", VERB_ENABLE, NULL, "record writes from now on"},
    {"disable", VERB_DISABLE, NULL, "record no more writes"},
    {"merge", VERB_MERGE, "SOURCE", "add what is dirty in the bitmap SOURCE"},
    {"granularity", 'g', "SIZE", "bytes for each bit: a power of 2, 512 to 2G"},
    {"source-file", 'b', "FILE", "merge bitmaps of this image"},
    {"source-format", 'F', "FORMAT", "format of that image"},
    {"format", 'f', "FORMAT", "format of the image (default: look at it)"},
    {"image-opts", OPT_IMAGE_OPTS, NULL,
     "take IMAGE and FILE as lists of options"},
    {"object", OPT_OBJECT, OBJECT_OPTION_ARG, OBJECT_OPTION_HELP},
    {"force-share", 'U', NULL, "list: even while another process writes"},
    {"output", OPT_OUTPUT, "human|json",
     "list: for people (default), or for programs"},
    {NULL, 0, NULL, NULL},
};

static const struct cli_command command = {
    .name = "bitmap",
    .usage = "list [-U] [--output human|json] IMAGE [NAME...]\n"
             "add [-g SIZE] [--disable] [--merge SOURCE] IMAGE NAME...\n"
             "remove|clear|enable|disable IMAGE NAME...\n"
             "merge [-b FILE] [-F FORMAT] IMAGE NAME SOURCE...\n"
             "repair [-g SIZE] IMAGE [NAME...]\n"
             "--add|--remove|--clear|--enable|--disable|--merge SOURCE... "
             "IMAGE NAME",
    .about = "List or change the persistent bitmaps of an image that no other\n"
             "process uses.  All changes happen together or not at all, and\n"
             "are on disk when the command has ended.  Repairing replaces an\n"
             "inconsistent bitmap by one in which everything is dirty.\n"
             "\n"
             "Exit status 3: a bitmap is inconsistent; 4: there is no such\n"
             "bitmap (add: there is one already); 5: the image is in use.\n",
    .options = option_table,
    .operands =
        "[list|add|remove|clear|enable|disable|merge|repair] IMAGE BITMAP...",
};

static const struct {
    const char *word;
    enum verb verb;
} verb_words[] = {
    {"add", VERB_ADD},       {"remove", VERB_REMOVE},   {"clear", VERB_CLEAR},
    {"enable", VERB_ENABLE}, {"disable", VERB_DISABLE}, {"merge", VERB_MERGE},
    {"list", VERB_LIST},     {"repair", VERB_REPAIR},
};

struct step {
    enum verb verb;
    const char *source; /* of a merge */
};

struct request {
    struct image_open image;
    struct image_open source; /* with .image NULL: the same image */
    struct step *steps;
    size_t step_count;
    enum verb verb;       /* of the first of them; VERB_LIST: none yet */
    uint64_t granularity; /* 0: not given */
    bool json;
    bool has_output;
    const char **names;
    size_t name_count;

    struct graph *graph;
    struct objects *objects;
};

/* --- Listing --- */

static bool is_asked_for(const struct request *rq, const char *name)
{
    bool named = false;

    for (size_t i = 0; i < rq->name_count && !named; i++) {
        named = name && strcmp(rq->names[i], name) == 0;
    }
    return named;
}

static bool is_wanted(const struct request *rq, const char *name)
{
    return rq->name_count == 0 || is_asked_for(rq, name);
}

static void print_line(const struct bitmap_info *b)
{
    CLEANUP_FREE char *shown = text_printable(b->name ? b->name : "?");
    char granularity[32];

    (void)size_human(b->granularity, granularity, sizeof(granularity));
    printf("%-10s %16" PRIu64 "  ", granularity, b->count);
    if (b->inconsistent) {
        printf("inconsistent  %s: %s\n", shown ? shown : "?",
               b->why ? b->why : "?");
    } else {
        printf("%-12s  %s\n", b->recording ? "enabled" : "disabled",
               shown ? shown : "?");
    }
}

static bool lists_name(const struct bitmap_list *list, const char *name)
{
    for (size_t i = 0; i < list->count; i++) {
        if (list->at[i].name && strcmp(list->at[i].name, name) == 0) {
            return true;
        }
    }
    return false;
}

/* Print the wanted bitmaps in the order of the image.  Is one of them
 * inconsistent? */
static bool print_wanted(const struct request *rq,
                         const struct bitmap_list *list)
{
    CLEANUP_JSON json_t *all = json_array();
    bool inconsistent = false;
    bool begun = false;

    for (size_t i = list->count; i-- > 0;) {
        const struct bitmap_info *b = &list->at[i];

        if (!is_wanted(rq, b->name)) {
            continue;
        }
        inconsistent |= b->inconsistent;
        if (rq->json) {
            (void)json_array_append_new(all, bitmap_info_json(b));
            continue;
        }
        if (!begun) {
            printf("%-10s %16s  %-12s  %s\n", "Granularity", "Dirty bytes",
                   "State", "Name");
        }
        begun = true;
        print_line(b);
    }
    if (rq->json) {
        cli_print_json(all);
    }
    return inconsistent;
}

static int list_bitmaps(const struct request *rq, struct node *n)
{
    CLEANUP_BITMAPS struct bitmap_list list;

    (void)bitmaps_get(n, &list);
    for (size_t i = 0; i < rq->name_count; i++) {
        if (!lists_name(&list, rq->names[i])) {
            (void)cli_failed(command.name, "Dirty bitmap '%s' not found",
                             rq->names[i]);
            return CLI_NONE;
        }
    }
    bool inconsistent = print_wanted(rq, &list);
    int status = cli_finish(command.name);
    return status == 0 && inconsistent ? CLI_DAMAGED : status;
}

/* --- Changing --- */

static int make_action(const struct request *rq, struct node *n,
                       struct node *source, const struct step *step,
                       const char *name, struct action **ap,
                       struct error **errp)
{
    struct bitmap_ref ref = {n, name};
    struct bitmap_ref from = {source, step->source};

    switch (step->verb) {
    case VERB_ADD:
        return bitmap_add_action(ref, rq->granularity, true, false, ap, errp);
    case VERB_REMOVE:
        return bitmap_remove_action(ref, ap, errp);
    case VERB_CLEAR:
        return bitmap_clear_action(ref, ap, errp);
    case VERB_ENABLE:
    case VERB_DISABLE:
        return bitmap_enable_action(ref, step->verb == VERB_ENABLE, ap, errp);
    case VERB_MERGE:
        return bitmap_merge_action(ref, &from, 1, ap, errp);
    default:
        return bitmap_repair_action(ref, rq->granularity, ap, errp);
    }
}

static int change_bitmaps(const struct request *rq, struct node *n,
                          struct node *source, struct error **errp)
{
    struct list actions;
    int r = 0;

    list_init(&actions);
    for (size_t i = 0; i < rq->name_count * rq->step_count && r == 0; i++) {
        struct action *a = NULL;

        r = make_action(rq, n, source, &rq->steps[i % rq->step_count],
                        rq->names[i / rq->step_count], &a, errp);
        if (r == 0) {
            r = actions_add(&actions, a, errp);
        }
    }
    if (r == 0) {
        return actions_run(rq->graph, &actions, errp);
    }
    actions_cancel(&actions);
    return r;
}

static bool is_source(const struct request *rq, const char *name)
{
    bool source = false;

    for (size_t i = 0; i < rq->step_count && !source; i++) {
        const char *each = rq->steps[i].source;
        source = name && each && strcmp(each, name) == 0;
    }
    return source;
}

/* Is a bitmap of @n inconsistent that is to be changed or merged? */
static bool meets_inconsistent(const struct request *rq, struct node *n,
                               bool changed, bool merged)
{
    CLEANUP_BITMAPS struct bitmap_list list;
    bool meets = false;

    (void)bitmaps_get(n, &list);
    for (size_t i = 0; i < list.count && !meets; i++) {
        const struct bitmap_info *b = &list.at[i];

        meets = b->inconsistent && ((changed && is_wanted(rq, b->name)) ||
                                    (merged && is_source(rq, b->name)));
    }
    return meets;
}

/* The exit status tells a script what has failed. */
static int exit_status(const struct request *rq, struct node *n,
                       struct node *source, int r)
{
    if (r == -ENOENT) {
        return CLI_NONE;
    }
    if (r == -EINVAL && rq->verb != VERB_REPAIR &&
        (meets_inconsistent(rq, n, true, source == n) ||
         meets_inconsistent(rq, source, false, true))) {
        return CLI_DAMAGED;
    }
    return EXIT_FAILURE;
}

static int change_image(const struct request *rq, struct node *n,
                        struct node *source)
{
    CLEANUP_ERROR struct error *err = NULL;
    int r = change_bitmaps(rq, n, source, &err);

    if (r < 0) {
        (void)cli_error(command.name, err);
        return exit_status(rq, n, source, r);
    }
    return EXIT_SUCCESS;
}

static int repair_these(const struct request *rq, struct node *n)
{
    int status = change_image(rq, n, n);

    for (size_t i = 0; status == 0 && i < rq->name_count; i++) {
        CLEANUP_FREE char *shown = text_printable(rq->names[i]);
        printf("%s: repaired: everything is dirty in it\n",
               shown ? shown : "?");
    }
    if (status == 0 && rq->name_count == 0) {
        puts("no bitmap is inconsistent");
    }
    return status == 0 ? cli_finish(command.name) : status;
}

/* Repair all inconsistent bitmaps.  A bitmap whose name is no text has to be
 * given. */
static int repair(struct request *rq, struct node *n)
{
    if (rq->name_count > 0) {
        return repair_these(rq, n);
    }
    CLEANUP_BITMAPS struct bitmap_list list;
    (void)bitmaps_get(n, &list);
    CLEANUP_FREE const char **names = calloc(list.count + 1, sizeof(*names));
    if (!names) {
        return cli_failed(command.name, "no memory for names");
    }
    struct request these = *rq;
    these.names = names;
    for (size_t i = list.count; i-- > 0;) {
        const struct bitmap_info *b = &list.at[i];

        if (b->inconsistent && !is_asked_for(&these, b->name)) {
            names[these.name_count++] = b->name; /* each once */
        }
    }
    return repair_these(&these, n);
}

/* --- The command line --- */

static int run_steps(struct request *rq)
{
    CLEANUP_ERROR struct error *err = NULL;
    struct node *source;
    struct node *n;

    rq->image.writable = rq->verb != VERB_LIST;
    int r = image_open(rq->graph, &rq->image, &n, &err);
    if (r < 0) {
        return cli_error(command.name, err);
    }
    source = n;
    if (rq->source.image) {
        r = image_open(rq->graph, &rq->source, &source, &err);
        if (r < 0) {
            return cli_error(command.name, err);
        }
    }
    return rq->verb == VERB_LIST     ? list_bitmaps(rq, n)
           : rq->verb == VERB_REPAIR ? repair(rq, n)
                                     : change_image(rq, n, source);
}

/* A word comes before all options. */
static int add_step(struct request *rq, enum verb verb, const char *source,
                    bool first)
{
    size_t at = first ? 0 : rq->step_count;
    struct step *more = realloc(rq->steps,
                                (rq->step_count + 1) * sizeof(*more));

    if (!more) {
        return cli_failed(command.name, "no memory for options");
    }
    memmove(more + at + 1, more + at, (rq->step_count - at) * sizeof(*more));
    more[at] = (struct step){verb, source};
    rq->steps = more;
    rq->step_count++;
    rq->verb = more[0].verb;
    return 0;
}

static bool has_step(const struct request *rq, enum verb verb)
{
    for (size_t i = 0; i < rq->step_count; i++) {
        if (rq->steps[i].verb == verb) {
            return true;
        }
    }
    return false;
}

/* Check which options go with which verbs. */
static int check_verbs(const struct request *rq)
{
    bool alone = rq->verb == VERB_LIST || rq->verb == VERB_REPAIR;
    const char *why = NULL;

    if (rq->step_count == 0) {
        why = "Need at least one of --add, --remove, --clear, --enable, "
              "--disable, or --merge, or a verb before the image";
    } else if (alone && rq->step_count > 1) {
        why = "listing and repairing do not go with anything else";
    } else if (rq->granularity && rq->verb != VERB_REPAIR &&
               !has_step(rq, VERB_ADD)) {
        why = "granularity only supported with --add";
    } else if (rq->source.image && !has_step(rq, VERB_MERGE)) {
        why = "Merge bitmap source file only supported with --merge";
    } else if (rq->source.format && !rq->source.image) {
        why = "-F only supported with -b";
    } else if ((rq->image.force_share || rq->has_output) &&
               rq->verb != VERB_LIST) {
        why = "-U and --output only go with list";
    } else if (!rq->image.image) {
        why = "which image?";
    } else if (!rq->image.image_opts && client_is_uri(rq->image.image)) {
        why = "this is about image files: for exports there are the commands "
              "of QMP";
    } else if (rq->name_count == 0 && !alone) {
        why = "Expecting filename and bitmap name";
    }
    return why ? cli_usage(&command, "%s", why) : 0;
}

/* Take the verb, if it is a word, the image and the names.  In a merge by word,
 * the names after the first are sources. */
static int take_image_and_names(struct request *rq, int argc, char **argv)
{
    int status = 0;

    for (size_t i = 0; argc > 0 && i < ARRAY_SIZE(verb_words); i++) {
        if (strcmp(argv[0], verb_words[i].word) != 0) {
            continue;
        }
        enum verb verb = verb_words[i].verb;
        if (verb == VERB_MERGE && argc < 4) {
            return cli_usage(&command, "Expecting filename, bitmap name and "
                                       "the bitmaps to merge");
        }
        while (status == 0 && verb == VERB_MERGE && argc > 3) {
            status = add_step(rq, verb, argv[--argc], true);
        }
        if (status == 0 && verb != VERB_MERGE) {
            status = add_step(rq, verb, NULL, true);
        }
        argc--;
        argv++;
        break;
    }
    if (argc > 0) {
        rq->image.image = argv[0];
        rq->names = (const char **)(uintptr_t)(argv + 1);
        rq->name_count = (size_t)argc - 1;
    }
    return status;
}

static int take_bitmap_option(struct request *rq, int code)
{
    switch (code) {
    case 'g':
        if (size_parse(optarg, &rq->granularity) < 0 || rq->granularity == 0) {
            return cli_no_size(&command, optarg);
        }
        return 0;
    case 'b':
        rq->source.image = optarg;
        return 0;
    case 'F':
        rq->source.format = optarg;
        return 0;
    case 'f':
        rq->image.format = optarg;
        return 0;
    case 'U':
        rq->image.force_share = true;
        return 0;
    case OPT_IMAGE_OPTS:
        rq->image.image_opts = true;
        rq->source.image_opts = true;
        return 0;
    case OPT_OBJECT:
        return object_option(&command, rq->objects, optarg);
    case OPT_OUTPUT:
        rq->has_output = true;
        return cli_output_format(&command, optarg, &rq->json);
    default:
        return add_step(rq, (enum verb)code, optarg, false);
    }
}

static int run_bitmap(struct request *rq, int argc, char **argv)
{
    int code;
    int status = 0;

    while (status == 0 && (code = cli_next(&command, argc, argv)) != CLI_END) {
        if (code < 0) {
            return code == CLI_HELP ? EXIT_SUCCESS : CLI_USAGE;
        }
        status = take_bitmap_option(rq, code);
    }
    if (status == 0) {
        status = take_image_and_names(rq, argc - optind, argv + optind);
    }
    if (status == 0) {
        status = check_verbs(rq);
    }
    return status == 0 ? run_steps(rq) : status;
}

int cmd_bitmap(int argc, char **argv)
{
    CLEANUP_GRAPH struct graph *g = graph_new();
    CLEANUP_OBJECTS struct objects *objects = objects_new(g);
    struct request rq = {
        .image = {.header_only = true},
        .source = {.header_only = true},
        .verb = VERB_LIST,
        .graph = g,
        .objects = objects,
    };
    int status = objects ? run_bitmap(&rq, argc, argv)
                         : cli_failed(command.name, "no memory");

    free(rq.steps);
    return status;
}
