/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_CLIENT_SCHEMA_H
#define NBDELTA_SERVER_CLIENT_SCHEMA_H

/*
 * What a monitor says of its commands
 * ===================================
 *
 * The answer to query-qmp-schema is a list of commands, events and types, which
 * name each other:
 *
 *   command "x" --arg-type--> object "7" --members--> [{name, type: "[8]"}]
 *                                                               |
 *                   array "[8]" --element-type--> enum "8"  <---+
 *
 * It comes from the other side, so nothing in it is taken for granted: types
 * may not be there, may be something else than they are used as, and may be
 * parts of themselves.  No function here follows more than one name.
 */
#include <jansson.h>
#include <stdbool.h>

struct error;
struct qmp_client;

struct schema {
    json_t *entries; /* name -> SchemaInfo */
};
#define SCHEMA_INIT \
    {               \
        NULL        \
    }

/* Take @list, the "return" of query-qmp-schema.  -EPROTO: it is no list of
 * things with names.  Whatever it returns, schema_free() is the end. */
int schema_take(struct schema *s, const json_t *list, struct error **errp);

/* Ask @c for it.  Blocks.  -ENOTSUP: the monitor refuses, with its words. */
int schema_ask(struct schema *s, struct qmp_client *c, struct error **errp);
void schema_free(struct schema *s);

/* The entry @name if its meta-type is @meta ("command", "object", ...; NULL:
 * any), or NULL.  Borrowed. */
const json_t *schema_find(const struct schema *s, const char *name,
                          const char *meta);

/* The same for what the member @key of @entry names. */
const json_t *schema_follow(const struct schema *s, const json_t *entry,
                            const char *key, const char *meta);

/* Has @object a member @name?  Of its variants those count that @args, a value
 * of this type (NULL: none is known), says. */
bool schema_has_member(const struct schema *s, const json_t *object,
                       const json_t *args, const char *name);

/* Call @fn for the name of each member that schema_has_member() finds. */
void schema_each_member(const struct schema *s, const json_t *object,
                        const json_t *args,
                        void (*fn)(const char *name, void *opaque),
                        void *opaque);

/* The member @name of @object, a SchemaInfoObjectMember, or NULL.  Borrowed. */
const json_t *schema_member(const struct schema *s, const json_t *object,
                            const json_t *args, const char *name);

/* The words of the enumeration @entry, an array (or something else, or NULL);
 * and the word that an item of it is, or NULL.  Borrowed. */
const json_t *schema_words(const json_t *entry);
const char *schema_word(const json_t *item);

/* Is the feature @name ("deprecated", "unstable") among those of @entry? */
bool schema_has_feature(const json_t *entry, const char *name);

#endif /* NBDELTA_SERVER_CLIENT_SCHEMA_H */
