/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_OPTION_H
#define NBDELTA_OPTION_H

/*
 * The options of nodes, described
 * ===============================
 *
 * Each driver has a table of its options, and one more table has the options of
 * every node.  The functions that take options while a node is opened
 * (core/opts.h) take only options that a table describes, and only as it
 * describes them.  So the tables are what is accepted, and introspection is
 * made from them.
 */
#include <stdbool.h>

enum option_type {
    OPTION_STR,
    OPTION_BOOL,
    OPTION_UINT,
    OPTION_ENUM,  /* one of `words` */
    OPTION_ENUMS, /* an array of these */
    OPTION_NODE,  /* the name of a node, or the options of a new one */
    OPTION_NODE_OR_NULL,
    OPTION_OBJECT,         /* with `members` */
    OPTION_OBJECTS,        /* an array of these */
    OPTION_ENUM_OR_OBJECT, /* one of `words`, or with `members` */
    OPTION_UNION,          /* an object whose "type", one of `words`, decides */
};

struct option {
    const char *name; /* NULL: the end of a table */
    enum option_type type;
    bool required;
    bool hidden;              /* not told: a name makes it (core/rbd-name.h) */
    const char *type_name;    /* of ENUM_OR_OBJECT, in texts: QEMU's; of UINT,
                                 where QEMU has no signed integer: "uint64" */
    const char *const *words; /* ends with NULL */
    const struct option *members;
    const struct option *const *cases; /* of a union: cases[i] has the members
                                          for words[i] */
    const char *const *features;       /* of QEMU's schema; ends with NULL */
};

/* What QEMU may change, for `features`. */
extern const char *const option_unstable[];

#define OPTION(n, t, ...)                            \
    {                                                \
        .name = (n), .type = OPTION_##t, __VA_ARGS__ \
    }
#define OPTIONS_END \
    {               \
        .name = 0   \
    }

/* The options of every node, except "driver". */
extern const struct option graph_node_options[];

/* The options of a driver; @driver is one of graph_driver_names(). */
const struct option *graph_driver_options(const char *driver);

/* What QEMU's schema has as "features" of the driver's options as a whole;
 * NULL: nothing. */
const char *const *graph_driver_features(const char *driver);

#endif /* NBDELTA_OPTION_H */
