/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_DRIVERS_BLKDEBUG_RULES_H
#define NBDELTA_DRIVERS_BLKDEBUG_RULES_H

/* Rules of a blkdebug node: what it does on which event. */
#include "core/event.h"
#include "nbdelta/list.h"
#include "nbdelta/option.h"

struct opts;

enum blkdebug_io {
    BLKDEBUG_READ,
    BLKDEBUG_WRITE,
    BLKDEBUG_WRITE_ZEROES,
    BLKDEBUG_DISCARD,
    BLKDEBUG_FLUSH,
    BLKDEBUG_BLOCK_STATUS,
};

enum blkdebug_action { BLKDEBUG_INJECT, BLKDEBUG_SET_STATE, BLKDEBUG_SUSPEND };

struct blkdebug_rule {
    struct list link;
    enum blkdebug_action action;
    enum node_event event;
    int state; /* 0: any */

    /* BLKDEBUG_INJECT */
    unsigned iotypes; /* bits, by enum blkdebug_io */
    int error;        /* positive; 0: lets the request pass */
    bool once;
    uint64_t offset; /* UINT64_MAX: any */
    uint64_t armed;  /* the larger the later; 0: not armed */

    /* BLKDEBUG_SET_STATE */
    int new_state;

    /* BLKDEBUG_SUSPEND; after the event the rule stands for the suspended
     * request. */
    char *tag; /* malloc()ed */
    bool resumed;
};

/* The event of that name, or -ENOENT. */
int blkdebug_event_find(const char *name);

void blkdebug_rule_free(struct blkdebug_rule *r); /* NULL is fine */

/* Free all rules of a list. */
void blkdebug_rules_free(struct list *rules);

/* The options of a rule in "inject-error" and in "set-state". */
extern const struct option blkdebug_inject_options[];
extern const struct option blkdebug_state_options[];

/*
 * Add the rules of the file @config (or NULL), and the rules that @o has under
 * "inject-error" and "set-state", the newest first.  On failure some may have
 * been added.
 */
int blkdebug_rules_load(struct list *rules, const char *config, struct opts *o,
                        struct error **errp);

#endif /* NBDELTA_DRIVERS_BLKDEBUG_RULES_H */
