/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_OPTION_H
#define NBDELTA_OPTION_H

/*
 * The options of nodes, described
 * ===============================
 *
 * Each driver has a table of its options, and one is for those of every node.
 * What takes options while a node is opened (core/opts.h) takes none that is
 * not described, or otherwise than it is: so what these tables say is what is
 * accepted, and introspection is made from them.
 */
#include <stdbool.h>

enum option_type {
    OPTION_STR,
    OPTION_BOOL,
    OPTION_UINT,
    OPTION_ENUM,         /* one of `words` */
    OPTION_ENUMS,        /* an array of these */
    OPTION_NODE,         /* the name of a node, or the options of a new one */
    OPTION_NODE_OR_NULL,
    OPTION_OBJECT,       /* with `members` */
    OPTION_OBJECTS,      /* an array of these */
    OPTION_UNION,        /* an object whose "type", one of `words`, decides */
};

struct option {
    const char *name; /* NULL: the end of a table */
    enum option_type type;
    bool required;
    const char *const *words;     /* ends with NULL */
    const struct option *members; /* of a union: those of words[i] in cases[i] */
    const struct option *const *cases;
};

#define OPTION(n, t, ...)                                  \
    {                                                      \
        .name = (n), .type = OPTION_##t __VA_OPT__(, ) __VA_ARGS__ \
    }
#define OPTIONS_END \
    {               \
        .name = 0   \
    }

/* Those of every node, but for "driver". */
extern const struct option graph_node_options[];

/* Those of a driver that graph_driver_names() has. */
const struct option *graph_driver_options(const char *driver);

#endif /* NBDELTA_OPTION_H */
