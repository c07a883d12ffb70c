/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * blkdebug: a filter that fails or holds up requests as a test wants it.
 *
 *     qcow2 --event: "read_aio"-->  rules --> new state
 *       |                             |  \--> the thread waits (breakpoint)
 *       |                             v
 *       +------- the request ----> armed? --> fails
 *                                     |
 *                                   image
 *
 * An event arms the error rules for it and for the current state, in place of
 * the rules that are armed.  Requests that such a rule fits fail, until other
 * rules are armed (or once, if the rule says so).  The new state holds from the
 * next event on.
 *
 * Requests that must not wait are sent back, so the rules see each request
 * once.
 */
#include "nbdelta/blkdebug.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "core/graph.h"
#include "core/opts.h"
#include "drivers/blkdebug-rules.h"
#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "util/iov.h"

struct blkdebug {
    /* Set at open. */
    uint64_t align; /* 0, here and below: the child's */
    uint64_t max_transfer;
    uint64_t opt_write_zero;
    uint64_t max_write_zero;
    uint64_t opt_discard;
    uint64_t max_discard;
    unsigned take; /* enum perm, of the child, also while nobody asks */
    unsigned deny; /* to others */

    _Atomic bool written; /* since the last flush */

    mutex_t lock;
    cond_t moved; /* requests were held up or resumed, or shall go on */

    /* Guarded by lock. */
    int state;
    uint64_t next_armed;
    struct list rules;     /* newest first */
    struct list suspended; /* rules that hold up a request; newest first */
    bool released;         /* nothing is held up any more */
};

#define rule_of(at) list_entry(at, struct blkdebug_rule, link)

/* --- Events --- */

static void disarm_rules(struct blkdebug *s) REQUIRES(s->lock)
{
    list_for_each (at, &s->rules) {
        rule_of(at)->armed = 0;
    }
}

/* Apply rules to an event.  Breakpoints that it has hit are moved to @hit. */
static void apply_rules(struct blkdebug *s, enum node_event event,
                        bool may_wait, struct list *hit) REQUIRES(s->lock)
{
    int new_state = s->state;
    bool armed = false;

    list_for_each_safe (at, &s->rules) {
        struct blkdebug_rule *rule = rule_of(at);
        if (rule->event != event ||
            (rule->state != 0 && rule->state != s->state)) {
            continue;
        }
        switch (rule->action) {
        case BLKDEBUG_INJECT:
            if (!armed) {
                disarm_rules(s);
                armed = true;
            }
            rule->armed = ++s->next_armed;
            break;
        case BLKDEBUG_SET_STATE:
            new_state = rule->new_state;
            break;
        case BLKDEBUG_SUSPEND:
            if (may_wait) {
                list_remove(at);
                list_append(hit, at);
            }
            break;
        }
    }
    s->state = new_state;
}

static void hold_up(struct node *n, struct blkdebug_rule *rule)
{
    struct blkdebug *s = n->state;

    thread_wait_begin();
    mutex_lock(&s->lock);
    while (!rule->resumed && !s->released && !node_is_draining(n)) {
        cond_wait(&s->moved, &s->lock);
    }
    list_remove(&rule->link);
    mutex_unlock(&s->lock);
    thread_wait_end();
    blkdebug_rule_free(rule);
}

static void blkdebug_event(struct node *n, enum node_event event)
{
    struct blkdebug *s = n->state;
    struct blkdebug_rule *held[8];
    size_t count = 0;
    struct list hit;

    /* If nothing was written, a parent need not flush. */
    if (event == EVENT_FLUSH_TO_DISK && !atomic_load(&s->written)) {
        return;
    }
    list_init(&hit);
    mutex_lock(&s->lock);
    apply_rules(s, event, !s->released && !node_is_draining(n), &hit);
    while (!list_empty(&hit)) {
        struct blkdebug_rule *rule = rule_of(hit.next);
        list_remove(&rule->link);
        if (count == ARRAY_SIZE(held)) { /* for the next request */
            list_append(&s->rules, &rule->link);
            continue;
        }
        held[count++] = rule;
        list_insert_before(s->suspended.next, &rule->link);
    }
    cond_broadcast(&s->moved);
    mutex_unlock(&s->lock);
    for (size_t i = 0; i < count; i++) {
        hold_up(n, held[i]);
    }
}

static void blkdebug_drain(struct node *n)
{
    struct blkdebug *s = n->state;

    mutex_lock(&s->lock);
    cond_broadcast(&s->moved);
    mutex_unlock(&s->lock);
}

/* When the user gives up, no request is held up any more. */
static void blkdebug_cancel(struct node *n)
{
    struct blkdebug *s = n->state;

    mutex_lock(&s->lock);
    s->released = true;
    cond_broadcast(&s->moved);
    mutex_unlock(&s->lock);
}

/* --- Requests --- */

static bool fits(const struct blkdebug_rule *rule, uint64_t offset,
                 uint64_t bytes, enum blkdebug_io type)
{
    return rule->armed > 0 && (rule->iotypes & 1U << type) &&
           (rule->offset == UINT64_MAX ||
            (rule->offset >= offset && rule->offset - offset < bytes));
}

/* Of the armed rules that fit the request, the one that was armed last. */
static struct blkdebug_rule *find_armed(struct blkdebug *s, uint64_t offset,
                                        uint64_t bytes, enum blkdebug_io type)
    REQUIRES(s->lock)
{
    struct blkdebug_rule *found = NULL;

    list_for_each (at, &s->rules) {
        struct blkdebug_rule *rule = rule_of(at);
        if (fits(rule, offset, bytes, type) &&
            (!found || rule->armed > found->armed)) {
            found = rule;
        }
    }
    return found;
}

static int check_io(struct node *n, uint64_t offset, uint64_t bytes,
                    enum blkdebug_io type)
{
    struct blkdebug *s = n->state;
    int r = 0;

    mutex_lock(&s->lock);
    struct blkdebug_rule *rule = find_armed(s, offset, bytes, type);
    if (rule && rule->error != 0) {
        r = -rule->error;
        if (rule->once) {
            list_remove(&rule->link);
            blkdebug_rule_free(rule);
        }
    }
    mutex_unlock(&s->lock);
    return r;
}

/* Clip a range to the disk: padding may stick out at its end. */
static uint64_t bytes_to_end(const struct node *n, uint64_t offset,
                             uint64_t bytes)
{
    uint64_t size = n->size;

    if (n->growable || bytes <= size - offset) {
        return bytes;
    }
    return size - offset;
}

static int blkdebug_preadv(struct node *n, uint64_t offset, uint64_t bytes,
                           const struct iovec *iov, int cnt, unsigned flags)
{
    struct iovec part[IOV_MAX_INNER];
    uint64_t len = bytes_to_end(n, offset, bytes);

    if (flags & REQ_NOWAIT) {
        return -EAGAIN;
    }
    int r = check_io(n, offset, bytes, BLKDEBUG_READ);
    if (r < 0) {
        return r;
    }
    iov_fill(iov, cnt, len, 0, bytes - len);
    return node_preadv(node_child(n, CHILD_FILE), offset, len, part,
                       iov_slice(part, iov, cnt, 0, len), flags);
}

static int blkdebug_pwritev(struct node *n, uint64_t offset, uint64_t bytes,
                            const struct iovec *iov, int cnt, unsigned flags)
{
    struct blkdebug *s = n->state;
    struct iovec part[IOV_MAX_INNER];
    uint64_t len = bytes_to_end(n, offset, bytes);

    if (flags & REQ_NOWAIT) {
        return -EAGAIN;
    }
    blkdebug_event(n, EVENT_PWRITEV);
    int r = check_io(n, offset, bytes, BLKDEBUG_WRITE);
    atomic_store(&s->written, true);
    if (r == 0) {
        r = node_pwritev(node_child(n, CHILD_FILE), offset, len, part,
                         iov_slice(part, iov, cnt, 0, len), flags);
    }
    blkdebug_event(n, EVENT_PWRITEV_DONE);
    return r;
}

static int zero_parts(struct node *n, uint64_t offset, uint64_t bytes,
                      unsigned flags)
{
    const struct blkdebug *s = n->state;
    uint64_t max = s->max_write_zero ? s->max_write_zero : bytes;
    int r = 0;

    for (uint64_t done = 0; done < bytes && r == 0; done += max) {
        uint64_t len = min_u64(bytes - done, max);
        r = check_io(n, offset + done, len, BLKDEBUG_WRITE_ZEROES);
        if (r == 0) {
            r = node_zero(node_child(n, CHILD_FILE), offset + done, len, flags);
        }
    }
    return r;
}

/* A range of less than a unit is left to the core, which writes it. */
static int blkdebug_zero(struct node *n, uint64_t offset, uint64_t bytes,
                         unsigned flags)
{
    struct blkdebug *s = n->state;

    if (bytes < n->limits.zero_align) {
        return -ENOTSUP;
    }
    blkdebug_event(n, EVENT_PWRITEV_ZERO);
    atomic_store(&s->written, true);
    int r = zero_parts(n, offset, bytes, flags);
    blkdebug_event(n, EVENT_PWRITEV_DONE);
    return r;
}

/* A discard is a hint: parts of units are left out. */
static int blkdebug_discard(struct node *n, uint64_t offset, uint64_t bytes)
{
    struct blkdebug *s = n->state;
    uint64_t unit = s->opt_discard ? s->opt_discard : 1;
    uint64_t from = div_up(offset, unit) * unit;
    uint64_t to = (offset + bytes) / unit * unit;
    uint64_t max = s->max_discard ? s->max_discard : bytes;
    int r = 0;

    atomic_store(&s->written, true);
    for (uint64_t at = from; at < to && r == 0; at += max) {
        uint64_t len = min_u64(to - at, max);
        r = check_io(n, at, len, BLKDEBUG_DISCARD);
        if (r == 0) {
            r = node_discard(node_child(n, CHILD_FILE), at, len);
        }
    }
    return r;
}

static int blkdebug_flush(struct node *n)
{
    struct blkdebug *s = n->state;
    int r = check_io(n, 0, 0, BLKDEBUG_FLUSH);

    if (r < 0) {
        return r;
    }
    bool written = atomic_exchange(&s->written, false);
    r = node_flush(node_child(n, CHILD_FILE));
    if (r < 0 && written) {
        atomic_store(&s->written, true);
    }
    return r;
}

static int blkdebug_status(struct node *n, uint64_t offset, uint64_t bytes)
{
    return check_io(n, offset, bytes, BLKDEBUG_BLOCK_STATUS);
}

/* --- Opening and closing --- */

static int take_limit(struct opts *o, const char *key, uint64_t unit,
                      uint64_t *val, struct error **errp)
{
    int r = opts_uint(o, key, INT64_MAX, val, errp);

    if (r == 0 && (*val >= INT_MAX || *val % unit != 0)) {
        r = error_set(errp, EINVAL, "Cannot meet constraints with %s %" PRIu64,
                      key, *val);
    }
    return r;
}

static int take_debug_limits(struct node *n, struct opts *o,
                             struct error **errp)
{
    struct blkdebug *s = n->state;
    uint64_t unit = node_child(n, CHILD_FILE)->limits.align;
    int r = take_limit(o, "align", 1, &s->align, errp);

    if (r == 0 && (s->align & (s->align - 1)) != 0) {
        r = error_set(errp, EINVAL,
                      "Cannot meet constraints with align %" PRIu64, s->align);
    }
    if (r < 0) {
        return r;
    }
    unit = max_u64(unit, s->align);
    if ((r = take_limit(o, "max-transfer", unit, &s->max_transfer, errp)) < 0 ||
        (r = take_limit(o, "opt-write-zero", unit, &s->opt_write_zero, errp)) <
            0 ||
        (r = take_limit(o, "max-write-zero", max_u64(unit, s->opt_write_zero),
                        &s->max_write_zero, errp)) < 0 ||
        (r = take_limit(o, "opt-discard", unit, &s->opt_discard, errp)) < 0) {
        return r;
    }
    return take_limit(o, "max-discard", max_u64(unit, s->opt_discard),
                      &s->max_discard, errp);
}

static const char *const perm_words[] = {"consistent-read", "write",
                                         "write-unchanged", "resize", NULL};
static const unsigned word_perms[] = {
    PERM_READ,
    PERM_WRITE,
    0 /* nobody here tells it from a write */,
    PERM_RESIZE,
};

static const struct option blkdebug_options[] = {
    OPTION("image", NODE, .required = true),
    OPTION("align", UINT),
    OPTION("config", STR),
    OPTION("inject-error", OBJECTS, .members = blkdebug_inject_options),
    OPTION("max-discard", UINT),
    OPTION("max-transfer", UINT),
    OPTION("max-write-zero", UINT),
    OPTION("opt-discard", UINT),
    OPTION("opt-write-zero", UINT),
    OPTION("set-state", OBJECTS, .members = blkdebug_state_options),
    OPTION("take-child-perms", ENUMS, .words = perm_words),
    OPTION("unshare-child-perms", ENUMS, .words = perm_words),
    OPTIONS_END,
};

static int take_perms(struct opts *o, const char *key, unsigned *perms,
                      struct error **errp)
{
    CLEANUP_JSON json_t *array = opts_take(o, key);
    size_t i;
    json_t *value;

    if (array && !json_is_array(array)) {
        return error_set(errp, EINVAL, "option '%s' must be an array", key);
    }
    json_array_foreach (array, i, value) {
        const char *word = json_string_value(value);
        size_t w = 0;
        while (perm_words[w] && word && strcmp(perm_words[w], word) != 0) {
            w++;
        }
        if (!word || !perm_words[w]) {
            return error_set(errp, EINVAL,
                             "Parameter '%s' does not accept value '%s'", key,
                             word ? word : "");
        }
        *perms |= word_perms[w];
    }
    return 0;
}

static int change_perms(struct node *n, struct opts *opts, struct error **errp)
{
    struct blkdebug *s = n->state;
    int r;

    if ((r = take_perms(opts, "take-child-perms", &s->take, errp)) < 0 ||
        (r = take_perms(opts, "unshare-child-perms", &s->deny, errp)) < 0 ||
        (r = node_check_perms(n, errp)) < 0) {
        return r;
    }
    node_hand_down_perms(n);
    return 0;
}

static void blkdebug_child_perms(const struct node *n, struct perms *p)
{
    const struct blkdebug *s = n->state;

    p->perm |= s->take;
    p->shared &= ~s->deny;
}

static int open_parts(struct node *n, struct opts *opts, struct error **errp)
{
    struct blkdebug *s = n->state;
    const char *config = NULL;
    int r;

    if ((r = opts_str(opts, "config", &config, errp)) < 0 ||
        (r = blkdebug_rules_load(&s->rules, config, opts, errp)) < 0 ||
        (r = node_open_child(n, opts, "image", CHILD_FILE, false, errp)) < 0 ||
        (r = change_perms(n, opts, errp)) < 0 ||
        (r = take_debug_limits(n, opts, errp)) < 0) {
        return r;
    }
    n->size = node_size(node_child(n, CHILD_FILE));
    return 0;
}

static void blkdebug_close(struct node *n)
{
    struct blkdebug *s = n->state;

    blkdebug_rules_free(&s->rules);
    cond_destroy(&s->moved);
    mutex_destroy(&s->lock);
}

static int blkdebug_open(struct node *n, struct opts *opts, struct error **errp)
{
    struct blkdebug *s = n->state;

    mutex_init(&s->lock, LOCK_BLKDEBUG, NULL);
    cond_init(&s->moved);
    list_init(&s->rules);
    list_init(&s->suspended);
    s->state = 1;
    int r = open_parts(n, opts, errp);
    if (r < 0) {
        blkdebug_close(n);
        return r;
    }
    blkdebug_event(n, EVENT_NONE);
    return 0;
}

/* The core knows powers of two only.  For another unit it gets the largest
 * power of two that divides it. */
static void blkdebug_limits(struct node *n, struct limits *lim)
{
    const struct blkdebug *s = n->state;

    if (s->align) {
        lim->align = (uint32_t)s->align;
    }
    if (s->opt_write_zero) {
        lim->zero_align = (uint32_t)(s->opt_write_zero &
                                     (~s->opt_write_zero + 1));
    }
    if (lim->zero_align < lim->align) {
        lim->zero_align = lim->align;
    }
    if (s->max_transfer) {
        lim->max_transfer = (uint32_t)s->max_transfer;
    }
    lim->max_transfer -= lim->max_transfer % lim->align;
}

static int blkdebug_resize(struct node *n, uint64_t size, struct error **errp)
{
    struct blkdebug *s = n->state;

    atomic_store(&s->written, true);
    return node_resize(node_child(n, CHILD_FILE), size, errp);
}

const struct driver driver_blkdebug = {
    .name = "blkdebug",
    .options = blkdebug_options,
    .is_filter = true,
    .state_size = sizeof(struct blkdebug),
    .flags_write = REQ_FUA,
    .flags_zero = REQ_MAY_UNMAP,
    .open = blkdebug_open,
    .close = blkdebug_close,
    .limits = blkdebug_limits,
    .child_perms = blkdebug_child_perms,
    .resize = blkdebug_resize,
    .preadv = blkdebug_preadv,
    .pwritev = blkdebug_pwritev,
    .zero = blkdebug_zero,
    .discard = blkdebug_discard,
    .flush = blkdebug_flush,
    .status = blkdebug_status,
    .event = blkdebug_event,
    .drain = blkdebug_drain,
    .cancel = blkdebug_cancel,
};

/* --- Breakpoints --- */

static int no_node(struct error **errp)
{
    return error_set(errp, ENOTSUP, "there is no blkdebug node");
}

/* The first blkdebug node below @top, in a request (node_leave); or NULL. */
static struct node *enter(struct node *top, struct tree **tree)
{
    *tree = node_enter(top, false);
    while (top && top->drv != &driver_blkdebug) {
        top = node_child(top, CHILD_FILE);
    }
    if (!top) {
        node_leave(*tree);
    }
    return top;
}

int blkdebug_break(struct node *top, const char *event, const char *tag,
                   struct error **errp)
{
    int number = blkdebug_event_find(event);
    struct blkdebug_rule *rule = calloc(1, sizeof(*rule));
    char *copy = strdup(tag);
    struct tree *tree;

    if (!rule || !copy) {
        free(rule);
        free(copy);
        return error_nomem(errp);
    }
    rule->action = BLKDEBUG_SUSPEND;
    rule->tag = copy;
    struct node *n = enter(top, &tree);
    if (!n || number < 0) {
        if (n) {
            node_leave(tree);
        }
        blkdebug_rule_free(rule);
        return n ? error_set(errp, ENOENT, "there is no event '%s'", event)
                 : no_node(errp);
    }
    struct blkdebug *s = n->state;
    rule->event = (enum node_event)number;
    mutex_lock(&s->lock);
    list_insert_before(s->rules.next, &rule->link);
    mutex_unlock(&s->lock);
    node_leave(tree);
    return 0;
}

static bool has_tag(const struct blkdebug_rule *rule, const char *tag)
{
    return rule->action == BLKDEBUG_SUSPEND && strcmp(rule->tag, tag) == 0;
}

/* Resume one request with the tag, or @all.  Returns how many. */
static unsigned resume_tag(struct blkdebug *s, const char *tag, bool all)
    REQUIRES(s->lock)
{
    unsigned count = 0;

    list_for_each (at, &s->suspended) {
        struct blkdebug_rule *rule = rule_of(at);
        if (has_tag(rule, tag) && !rule->resumed && (all || count == 0)) {
            rule->resumed = true;
            count++;
        }
    }
    cond_broadcast(&s->moved);
    return count;
}

static unsigned remove_tag(struct blkdebug *s, const char *tag)
    REQUIRES(s->lock)
{
    unsigned count = 0;

    list_for_each_safe (at, &s->rules) {
        struct blkdebug_rule *rule = rule_of(at);
        if (has_tag(rule, tag)) {
            list_remove(at);
            blkdebug_rule_free(rule);
            count++;
        }
    }
    return count;
}

static int change_tag(struct node *top, const char *tag, bool remove,
                      struct error **errp)
{
    struct tree *tree;
    struct node *n = enter(top, &tree);

    if (!n) {
        return no_node(errp);
    }
    struct blkdebug *s = n->state;
    mutex_lock(&s->lock);
    unsigned count = remove ? remove_tag(s, tag) : 0;
    count += resume_tag(s, tag, remove);
    mutex_unlock(&s->lock);
    node_leave(tree);
    return count > 0 ? 0
                     : error_set(errp, ENOENT,
                                 remove ? "there is no breakpoint '%s'"
                                        : "no request is held up as '%s'",
                                 tag);
}

int blkdebug_remove_break(struct node *top, const char *tag,
                          struct error **errp)
{
    return change_tag(top, tag, true, errp);
}

int blkdebug_resume(struct node *top, const char *tag, struct error **errp)
{
    return change_tag(top, tag, false, errp);
}

static bool is_suspended(struct blkdebug *s, const char *tag) REQUIRES(s->lock)
{
    list_for_each (at, &s->suspended) {
        if (has_tag(rule_of(at), tag) && !rule_of(at)->resumed) {
            return true;
        }
    }
    return false;
}

bool blkdebug_is_suspended(struct node *top, const char *tag)
{
    return blkdebug_wait_break(top, tag, 0);
}

bool blkdebug_wait_break(struct node *top, const char *tag, uint64_t ms)
{
    uint64_t end = now_ns() / 1000000 + ms;
    struct tree *tree;
    struct node *n = enter(top, &tree);
    bool found;

    if (!n) {
        return false;
    }
    struct blkdebug *s = n->state;
    mutex_lock(&s->lock);
    while (!(found = is_suspended(s, tag)) && !node_is_draining(n)) {
        uint64_t now = now_ns() / 1000000;
        if (now >= end) {
            break;
        }
        (void)cond_wait_ms(&s->moved, &s->lock, end - now);
    }
    mutex_unlock(&s->lock);
    node_leave(tree);
    return found;
}
