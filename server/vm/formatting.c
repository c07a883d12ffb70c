/* SPDX-License-Identifier: BSD-3-Clause */
/* "Formatting ...": see formatting.h. */
#include "vm/formatting.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "daemon.h"
#include "nbdelta/graph.h"

void vm_tell_formatting(const struct daemon *d, const char *filename,
                        const char *format, const struct node *of,
                        const struct node *backing)
{
    const char *fmt = format ? format : "qcow2";
    bool qcow2 = strcmp(fmt, "qcow2") == 0;

    if (!d->vm_compat) {
        return;
    }
    /* Commands that make images have no options for them: these are qcow2's
     * own. */
    printf("Formatting '%s', fmt=%s%s size=%" PRIu64, filename, fmt,
           qcow2 ? " cluster_size=65536 extended_l2=off compression_type=zlib"
                 : "",
           node_size(of));
    if (backing) {
        printf(" backing_file=%s backing_fmt=%s", node_filename(backing),
               node_driver(backing));
    }
    printf("%s\n", qcow2 ? " lazy_refcounts=off refcount_bits=16" : "");
    (void)fflush(stdout);
}
