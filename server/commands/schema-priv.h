/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_COMMANDS_SCHEMA_PRIV_H
#define NBDELTA_SERVER_COMMANDS_SCHEMA_PRIV_H

/* What the parts of query-qmp-schema share: see schema.c. */
#include <jansson.h>
#include <stdbool.h>

struct qmp_arg;

struct schema {
    json_t *users; /* commands and events */
    json_t *types;
    json_t *names; /* what describes a type -> its name */
    unsigned count;
    bool failed; /* no memory */
};

struct type_name {
    char text[32];
};

/* Put @item, whose reference is taken, at the end of @list. */
void schema_append(struct schema *s, json_t *list, json_t *item);

/* Give @item its features (NULL: there are none), and return it. */
json_t *schema_with_features(struct schema *s, json_t *item,
                             const char *const *features);

/* The name of the type that @what describes, in the role @kind, or a new one.
 * True: it is new. */
bool schema_name_type(struct schema *s, char kind, const void *what,
                      struct type_name *n);

/* Each makes the type, unless it is there, and gives its name. */
void schema_builtin(struct schema *s, const char *name, const char *json_type,
                    struct type_name *n);
void schema_enum_of(struct schema *s, const char *const *words,
                    struct type_name *n);
/* @spec NULL: without members. */
void schema_object_of(struct schema *s, const struct qmp_arg *spec,
                      struct type_name *n);
/* BlockdevRef, or BlockdevRefOrNull. */
void schema_node_ref_of(struct schema *s, bool or_null, struct type_name *n);

/* The type @n, which is new, of a node; @key: the row of "driver". */
void schema_node_options_of(struct schema *s, const struct qmp_arg *key,
                            struct type_name *n);

/* Turn the name of a type into that of arrays of it. */
void schema_array_of(struct schema *s, struct type_name *n);

#endif /* NBDELTA_SERVER_COMMANDS_SCHEMA_PRIV_H */
