/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_LIST_H
#define NBDELTA_LIST_H

/* Intrusive, circular, doubly linked list.  A list is its own sentinel. */
#include <stdbool.h>
#include <stddef.h>

struct list {
    struct list *next;
    struct list *prev;
};

static inline void list_init(struct list *l)
{
    l->next = l->prev = l;
}
static inline bool list_empty(const struct list *l)
{
    return l->next == l;
}
static inline void list_insert_before(struct list *at, struct list *e)
{
    e->next = at;
    e->prev = at->prev;
    at->prev->next = e;
    at->prev = e;
}
/* Append @e to the list @l. */
static inline void list_append(struct list *l, struct list *e)
{
    list_insert_before(l, e);
}
/* Afterwards @e is an empty list, so that removing it twice is harmless. */
static inline void list_remove(struct list *e)
{
    e->prev->next = e->next;
    e->next->prev = e->prev;
    list_init(e);
}

#define list_entry(ptr, type, member) \
    ((type *)(void *)((char *)(ptr)-offsetof(type, member)))

#define list_for_each(pos, l) \
    for (struct list *pos = (l)->next; pos != (l); pos = pos->next)

/* From the last to the first. */
#define list_for_each_reverse(pos, l) \
    for (struct list *pos = (l)->prev; pos != (l); pos = pos->prev)

/* @pos may be removed in the body. */
#define list_for_each_safe(pos, l)                                          \
    for (struct list *pos = (l)->next, *pos##_next = pos->next; pos != (l); \
         pos = pos##_next, pos##_next = pos->next)

#endif /* NBDELTA_LIST_H */
