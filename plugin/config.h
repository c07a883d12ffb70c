/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_PLUGIN_CONFIG_H
#define NBDELTA_PLUGIN_CONFIG_H

/*
 * What stands after `nbdkit nbdelta` on the command line.
 */
#include <jansson.h>
#include <stdbool.h>

struct error;

/* A disk to be exported. */
struct source {
    char *name;      /* of the export and of the node; unique */
    json_t *options; /* as graph_open takes them; paths in it are absolute */
    bool is_file;    /* of file=, so that other parameters count */
    bool no_backing; /* backing=off was given for it */
};

struct strings {
    char **at;
    unsigned count;
};

struct config {
    struct source *sources; /* by config_complete */
    unsigned source_count;
    struct strings allowed; /* directories */
    struct strings bitmaps;
    bool writethrough; /* each write is durable before it is answered */

    /* As they were given; NULL: not at all. */
    struct strings files;
    struct strings blockdevs;
    char *format;
    char *follow;
    char *cache;
    char *discard;
    char *durability;
    char *passphrase;
    int backing; /* -1: not at all */
    int direct;
};

/* What --help prints: a line or more for each parameter. */
extern const char config_help[];

void config_init(struct config *c);
void config_free(struct config *c);

/* A parameter; then, after the last of them, the whole.  -EINVAL with a text
 * that says what to write instead. */
int config_take(struct config *c, const char *key, const char *value,
                struct error **errp);
int config_complete(struct config *c, struct error **errp);

/* The passphrase of encrypted images, whichever way nbdkit got it.  It is
 * taken, and overwritten when it is freed. */
int config_take_passphrase(struct config *c, char *passphrase,
                           struct error **errp);

#endif /* NBDELTA_PLUGIN_CONFIG_H */
