/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Integers from 2^63 to 2^64 - 1: see wide.h.
 *
 *   {"id": 18446744073709551615, "x": 1.5}      the message
 *          |                          |
 *          1.8446744073709552e19      1.5       real numbers, in their order
 *          ^ the 0th is 2^64 - 1                the list
 *
 * What is sent has a string for each of them, with a NUL in front: "\0" "1844".
 * No other string of a message has one, as jansson takes none from outside.  So
 * the text of the message shows where they are.
 */
#include "wide.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "nbdelta/cleanup.h"

struct wide_item {
    size_t nth;
    uint64_t n;
    json_t *value; /* NULL: not bound */
};
_Static_assert(sizeof(struct wide_item) * 2 <= WIDE_BYTES,
               "arrays are doubled");

static _Thread_local const struct wide_list *in_use;

bool wide_add(struct wide_list *l, size_t nth, uint64_t n)
{
    if (l->count == l->alloc) {
        size_t alloc = l->alloc ? 2 * l->alloc : 4;
        struct wide_item *items = realloc(l->items, alloc * sizeof(*items));

        if (!items) {
            return false;
        }
        l->items = items;
        l->alloc = alloc;
    }
    l->items[l->count++] = (struct wide_item){nth, n, NULL};
    return true;
}

void wide_clear(struct wide_list *l)
{
    for (size_t i = 0; i < l->count; i++) {
        json_decref(l->items[i].value);
    }
    free(l->items);
    *l = (struct wide_list){NULL, 0, 0};
}

/* --- Finding them. --- */

struct walk {
    struct wide_list *list;
    size_t reals; /* behind us */
    size_t next;  /* of the list */
};

/* jansson keeps members in the order in which they came. */
static void walk_value(struct walk *w, json_t *v)
{
    const char *key;
    json_t *below;
    size_t i;

    if (json_is_object(v)) {
        json_object_foreach (v, key, below) {
            walk_value(w, below);
        }
    } else if (json_is_array(v)) {
        json_array_foreach (v, i, below) {
            walk_value(w, below);
        }
    } else if (json_is_real(v)) {
        struct wide_item *item = &w->list->items[w->next];

        if (w->next < w->list->count && item->nth == w->reals) {
            item->value = json_incref(v);
            w->next++;
        }
        w->reals++;
    }
}

static int by_value(const void *a, const void *b)
{
    uintptr_t x = (uintptr_t)((const struct wide_item *)a)->value;
    uintptr_t y = (uintptr_t)((const struct wide_item *)b)->value;

    return (x > y) - (x < y);
}

void wide_bind(struct wide_list *l, json_t *value)
{
    struct walk w = {.list = l};

    if (l->count > 0) {
        walk_value(&w, value);
        qsort(l->items, l->count, sizeof(*l->items), by_value);
    }
}

void wide_use(const struct wide_list *l)
{
    in_use = l && l->count > 0 ? l : NULL;
}

static const struct wide_item *find(const json_t *v)
{
    const struct wide_item key = {.value = (json_t *)(uintptr_t)v};

    return in_use && json_is_real(v)
               ? bsearch(&key, in_use->items, in_use->count, sizeof(key),
                         by_value)
               : NULL;
}

/* --- Using them. --- */

json_t *wide_to_bits(json_t *object, const char *key)
{
    const struct wide_item *item = find(json_object_get(object, key));

    if (item) {
        (void)json_object_set_new(object, key,
                                  json_integer((json_int_t)item->n));
    }
    return json_object_get(object, key);
}

static json_t *mark(uint64_t n)
{
    char text[24] = "";
    int digits = snprintf(text + 1, sizeof(text) - 1, "%" PRIu64, n);

    return json_stringn_nocheck(text, (size_t)digits + 1);
}

static json_t *copy_array(const json_t *value)
{
    CLEANUP_JSON json_t *copy = json_array();
    size_t i;
    json_t *below;

    json_array_foreach (value, i, below) {
        if (json_array_append_new(copy, wide_copy(below)) < 0) {
            return NULL;
        }
    }
    return json_incref(copy);
}

static json_t *copy_object(const json_t *value)
{
    CLEANUP_JSON json_t *copy = json_object();
    const char *key;
    json_t *below;

    json_object_foreach ((json_t *)(uintptr_t)value, key, below) {
        if (json_object_set_new(copy, key, wide_copy(below)) < 0) {
            return NULL;
        }
    }
    return json_incref(copy);
}

json_t *wide_copy(const json_t *value)
{
    const struct wide_item *item = find(value);

    return item                              ? mark(item->n)
           : in_use && json_is_array(value)  ? copy_array(value)
           : in_use && json_is_object(value) ? copy_object(value)
                                             : json_deep_copy(value);
}

size_t wide_write(char *text, size_t len)
{
    static const char begin[] = "\"\\u0000";
    const char *from = text;
    const char *end = text + len;
    char *to = text;

    while (in_use) {
        const char *at = memmem(from, (size_t)(end - from), begin,
                                sizeof(begin) - 1);
        const char *digits = at ? at + sizeof(begin) - 1 : end;
        const char *quote = memchr(digits, '"', (size_t)(end - digits));

        if (!quote) {
            break;
        }
        memmove(to, from, (size_t)(at - from));
        to += at - from;
        memmove(to, digits, (size_t)(quote - digits));
        to += quote - digits;
        from = quote + 1;
    }
    memmove(to, from, (size_t)(end - from));
    return (size_t)(to - text) + (size_t)(end - from);
}
