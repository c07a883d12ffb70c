/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The implicit-open policy: which files an image may name.
 *
 * Both sides are resolved (symbolic links, "..") before they are compared,
 * so that neither a link nor a clever name leads out of a directory.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/graph_priv.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"

int graph_allow_path(struct graph *g, const char *dir, struct error **errp)
{
    char *real = realpath(dir, NULL);
    if (!real) {
        return error_set(errp, errno, "cannot resolve the directory '%s': %s",
                         dir, strerror(errno));
    }
    char **more = realloc(g->allowed, (g->allowed_count + 1) * sizeof(*more));
    if (!more) {
        free(real);
        return error_set(errp, ENOMEM, "no memory for the path '%s'", dir);
    }
    g->allowed = more;
    g->allowed[g->allowed_count++] = real;
    return 0;
}

void graph_allow_any_path(struct graph *g)
{
    g->allow_any = true;
}

void graph_without_data(struct graph *g)
{
    g->without_data = true;
}

char *path_beside(const char *image, const char *named)
{
    const char *slash = strrchr(image, '/');
    char *path;

    if (named[0] == '/' || !slash) {
        return strdup(named);
    }
    if (asprintf(&path, "%.*s/%s", (int)(slash - image), image, named) < 0) {
        return NULL;
    }
    return path;
}

/* Is @path @dir itself or below it?  Both are resolved. */
static bool path_is_below(const char *dir, const char *path)
{
    size_t len = strlen(dir);

    if (strcmp(dir, "/") == 0) {
        return true;
    }
    return strncmp(dir, path, len) == 0 &&
           (path[len] == '/' || path[len] == '\0');
}

int policy_check(struct graph *g, const char *image, const char *path,
                 struct error **errp)
{
    if (g->allow_any) {
        return 0;
    }
    CLEANUP_FREE char *real_image = realpath(image, NULL);
    CLEANUP_FREE char *real = realpath(path, NULL);
    if (!real) {
        return error_set(errp, errno,
                         "image '%s' names the file '%s', which cannot be "
                         "opened: %s",
                         image, path, strerror(errno));
    }
    if (real_image) {
        char *slash = strrchr(real_image, '/');
        slash[slash == real_image] = '\0';
        if (path_is_below(real_image, real)) {
            return 0;
        }
    }
    for (size_t i = 0; i < g->allowed_count; i++) {
        if (path_is_below(g->allowed[i], real)) {
            return 0;
        }
    }
    return error_set(errp, EPERM,
                     "image '%s' names the file '%s', which is outside of "
                     "the image's directory and of what --allow-path allows",
                     image, real);
}
