/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_SOURCE_LIBVIRT_XML_H
#define NBDELTA_SERVER_SOURCE_LIBVIRT_XML_H

/* What libvirt's XML tells of a domain and its checkpoints, and what we send
 * to it.  Nothing here talks to libvirt.  Texts of libvirt are foreign: nothing
 * outside of them is loaded, whatever they refer to. */
#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

struct error;

/* --- A domain --- */

struct libvirt_xml_disk {
    char *name;   /* of its target: "vda" */
    char *source; /* the file, device, volume...; NULL: none is in it */
    bool wanted;  /* a disk that a guest writes to, not a CD */
    bool bitmaps; /* its format keeps them */
};

struct libvirt_xml_domain {
    struct libvirt_xml_disk *disks;
    size_t count;
    int id;         /* of the running domain; -1 */
    bool has_owner; /* QEMU's user is known */
    uid_t owner;
};

/* -EINVAL: it is none.  Free @d afterwards, also then. */
int libvirt_xml_read_domain(const char *xml, struct libvirt_xml_domain *d,
                            struct error **errp);
void libvirt_xml_free_domain(struct libvirt_xml_domain *d);

/* --- A checkpoint --- */

/* @whole: libvirt knows what is dirty on that disk since then. */
typedef int libvirt_xml_disk_fn(const char *disk, bool whole, void *opaque);

/* Tell @fn of the disks that have a bitmap, as the text (which was asked with
 * sizes) says.  Non-zero of @fn ends that and is returned. */
int libvirt_xml_each_disk(const char *xml, libvirt_xml_disk_fn *fn,
                          void *opaque, struct error **errp);

/* --- What is sent; malloc()ed, NULL: no memory --- */

struct libvirt_xml_item {
    const char *name;
    const char *since;   /* the checkpoint, or NULL */
    const char *scratch; /* its file; NULL: not in the backup */
    bool checkpoint;     /* in the new one */
};

struct libvirt_xml_server {
    const char *socket; /* or NULL, and: */
    const char *host;
    const char *port;
    bool tls;
};

/* The bitmap of an increment, as the export has it: "backup-DISK". */
#define LIBVIRT_XML_BITMAP "backup-"

char *libvirt_xml_backup(const struct libvirt_xml_server *server,
                         const struct libvirt_xml_item *items, size_t count);

/* @redefined: the metadata of one whose bitmaps are there. */
char *libvirt_xml_checkpoint(const char *name,
                             const struct libvirt_xml_item *items, size_t count,
                             bool redefined);

#endif /* NBDELTA_SERVER_SOURCE_LIBVIRT_XML_H */
