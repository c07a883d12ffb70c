/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_WIDE_H
#define NBDELTA_SERVER_WIDE_H

/*
 * Wide integers: from 2^63 to 2^64 - 1
 * ====================================
 *
 * QMP has them, and jansson has no value for them.  In a message they are real
 * numbers, so that whatever wants an int64 refuses them.  A list beside the
 * message says what they are.  It belongs to the thread that works on the
 * message.  Two ask it: the check of arguments, where an uint64 is wanted, and
 * the reply, which sends the request's id back.
 */
#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct wide_item;

/* All zeroes: empty. */
struct wide_list {
    struct wide_item *items;
    size_t count;
    size_t alloc;
};

/* Memory that a list takes for each integer, at most. */
#define WIDE_BYTES 48

/* While a message is read: its @nth real number (from 0), as jansson sees it,
 * is @n.  Call it in their order.  False: no memory. */
bool wide_add(struct wide_list *l, size_t nth, uint64_t n);

/* The message has become @value: find the numbers in it.  The list keeps them
 * alive. */
void wide_bind(struct wide_list *l, json_t *value);

void wide_clear(struct wide_list *l);

/* The calls below ask @l in this thread, from now on.  NULL: none. */
void wide_use(const struct wide_list *l);

/* The member @key of @object.  A wide integer becomes the int64 of the same
 * bits, unless there is no memory: then it stays what it was. */
json_t *wide_to_bits(json_t *object, const char *key);

/* A deep copy of @value, for a message that is sent; NULL: no memory.  Wide
 * integers are marked in it. */
json_t *wide_copy(const json_t *value);

/* Write the integers that are marked in the text of a message, of @len bytes.
 * Returns its new length, which is no greater. */
size_t wide_write(char *text, size_t len);

#endif /* NBDELTA_SERVER_WIDE_H */
