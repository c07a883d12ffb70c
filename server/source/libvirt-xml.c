/* SPDX-License-Identifier: BSD-3-Clause */
/* The XML of libvirt: see libvirt-xml.h. */
#include "source/libvirt-xml.h"

#include <errno.h>
#include <libxml/parser.h>
#include <libxml/tree.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "nbdelta/error.h"

/* --- Reading --- */

/* The document, whose root is @root; NULL: it is none. */
static xmlDoc *parse(const char *xml, const char *root, struct error **errp)
{
    size_t len = strlen(xml);

    xmlDoc *doc = len > INT32_MAX
                      ? NULL
                      : xmlReadMemory(xml, (int)len, "libvirt.xml", NULL,
                                      XML_PARSE_NONET | XML_PARSE_NOERROR |
                                          XML_PARSE_NOWARNING);
    xmlNode *top = doc ? xmlDocGetRootElement(doc) : NULL;

    if (!top || strcmp((const char *)top->name, root) != 0) {
        xmlFreeDoc(doc);
        (void)error_set(errp, EINVAL, "libvirt has sent no <%s>", root);
        return NULL;
    }
    return doc;
}

/* The first element of the name, from @n on. */
static xmlNode *find(xmlNode *n, const char *name)
{
    while (n && (n->type != XML_ELEMENT_NODE ||
                 (name && strcmp((const char *)n->name, name) != 0))) {
        n = n->next;
    }
    return n;
}

static xmlNode *child(const xmlNode *n, const char *name)
{
    return n ? find(n->children, name) : NULL;
}

/* A new text, or NULL. */
static char *attribute(const xmlNode *n, const char *name)
{
    xmlChar *is = n ? xmlGetProp(n, (const xmlChar *)name) : NULL;
    char *copy = is ? strdup((const char *)is) : NULL;

    xmlFree(is);
    return copy;
}

static bool attribute_is(const xmlNode *n, const char *name, const char *value)
{
    char *is = attribute(n, name);
    bool same = is && strcmp(is, value) == 0;

    free(is);
    return same;
}

/* What <source> names: whichever attribute is there says it. */
static char *source_of(const xmlNode *disk)
{
    static const char *const names[] = {"file", "dev", "dir", "name", "volume"};
    const xmlNode *source = child(disk, "source");
    char *is = NULL;

    for (size_t i = 0; !is && i < sizeof(names) / sizeof(names[0]); i++) {
        is = attribute(source, names[i]);
    }
    return is ? is : source && source->properties ? strdup("?") : NULL;
}

static int add_disk(struct libvirt_xml_domain *d, const xmlNode *disk,
                    struct error **errp)
{
    struct libvirt_xml_disk *more = realloc(d->disks,
                                            (d->count + 1) * sizeof(*more));
    char *name = attribute(child(disk, "target"), "dev");

    if (more) {
        d->disks = more;
    }
    if (!more || !name) {
        free(name);
        return more ? error_set(errp, EINVAL, "libvirt's disk has no target")
                    : error_nomem(errp);
    }
    char *device = attribute(disk, "device");
    struct libvirt_xml_disk *new = &more[d->count++];
    *new = (struct libvirt_xml_disk){
        .name = name,
        .source = source_of(disk),
        .bitmaps = attribute_is(child(disk, "driver"), "type", "qcow2"),
    };
    new->wanted = new->source && !child(disk, "readonly") &&
                  (!device || strcmp(device, "disk") == 0 ||
                   strcmp(device, "lun") == 0);
    free(device);
    return 0;
}

/* <seclabel model='dac'><label>+64055:+64055</label> */
static void read_owner(struct libvirt_xml_domain *d, const xmlNode *top)
{
    xmlNode *n = child(top, "seclabel");

    while (n && !attribute_is(n, "model", "dac")) {
        n = find(n->next, "seclabel");
    }
    const xmlNode *label = child(n, "label");
    xmlChar *text = label ? xmlNodeGetContent(label) : NULL;
    char *end = (char *)text;

    /* "+UID:+GID" */
    if (text && text[0] == '+' && text[1] >= '0' && text[1] <= '9') {
        unsigned long uid = strtoul((char *)text + 1, &end, 10);

        d->has_owner = *end == ':' && uid < (uid_t)-1;
        d->owner = d->has_owner ? (uid_t)uid : 0;
    }
    xmlFree(text);
}

/* -1: the domain does not run. */
static int read_id(const char *text)
{
    char *end = NULL;
    long id = text ? strtol(text, &end, 10) : -1;

    return text && end > text && *end == '\0' && id >= 0 && id <= INT_MAX
               ? (int)id
               : -1;
}

int libvirt_xml_read_domain(const char *xml, struct libvirt_xml_domain *d,
                            struct error **errp)
{
    int r = 0;

    *d = (struct libvirt_xml_domain){.id = -1};
    xmlDoc *doc = parse(xml, "domain", errp);
    if (!doc) {
        return -EINVAL;
    }
    const xmlNode *top = xmlDocGetRootElement(doc);
    char *id = attribute(top, "id");
    d->id = read_id(id);
    free(id);
    read_owner(d, top);
    xmlNode *n = child(child(top, "devices"), "disk");
    for (; r == 0 && n; n = find(n->next, "disk")) {
        r = add_disk(d, n, errp);
    }
    xmlFreeDoc(doc);
    return r;
}

void libvirt_xml_free_domain(struct libvirt_xml_domain *d)
{
    for (size_t i = 0; i < d->count; i++) {
        free(d->disks[i].name);
        free(d->disks[i].source);
    }
    free(d->disks);
    *d = (struct libvirt_xml_domain){.id = -1};
}

int libvirt_xml_each_disk(const char *xml, libvirt_xml_disk_fn *fn,
                          void *opaque, struct error **errp)
{
    xmlDoc *doc = parse(xml, "domaincheckpoint", errp);
    int r = 0;

    if (!doc) {
        return -EINVAL;
    }
    xmlNode *n = child(child(xmlDocGetRootElement(doc), "disks"), "disk");
    for (; r == 0 && n; n = find(n->next, "disk")) {
        char *name = attribute(n, "name");
        char *size = attribute(n, "size");

        r = name && attribute_is(n, "checkpoint", "bitmap")
                ? fn(name, size != NULL, opaque)
                : 0;
        free(name);
        free(size);
    }
    xmlFreeDoc(doc);
    return r;
}

/* --- Writing --- */

static void put_escaped(FILE *f, const char *text)
{
    for (; *text; text++) {
        switch (*text) {
        case '&':
            (void)fputs("&amp;", f);
            break;
        case '<':
            (void)fputs("&lt;", f);
            break;
        case '>':
            (void)fputs("&gt;", f);
            break;
        case '\'':
            (void)fputs("&apos;", f);
            break;
        default:
            (void)fputc(*text, f);
        }
    }
}

static void put_attribute(FILE *f, const char *name, const char *value)
{
    if (value) {
        (void)fprintf(f, " %s='", name);
        put_escaped(f, value);
        (void)fputc('\'', f);
    }
}

static void put_backup_disk(FILE *f, const struct libvirt_xml_item *i)
{
    (void)fputs("<disk", f);
    put_attribute(f, "name", i->name);
    if (!i->scratch) {
        (void)fputs(" backup='no'/>", f);
        return;
    }
    (void)fputs(" backup='yes' type='file'", f);
    put_attribute(f, "exportname", i->name);
    put_attribute(f, "backupmode", i->since ? "incremental" : "full");
    if (i->since) {
        put_attribute(f, "incremental", i->since);
        (void)fputs(" exportbitmap='" LIBVIRT_XML_BITMAP, f);
        put_escaped(f, i->name);
        (void)fputc('\'', f);
    }
    (void)fputs("><driver type='qcow2'/><scratch", f);
    put_attribute(f, "file", i->scratch);
    (void)fputs("/></disk>", f);
}

/* The text that was written to @f. */
static char *close_text(FILE *f, char **text)
{
    if (fclose(f) != 0) {
        free(*text);
        *text = NULL;
    }
    return *text;
}

char *libvirt_xml_backup(const struct libvirt_xml_server *server,
                         const struct libvirt_xml_item *items, size_t count)
{
    char *text = NULL;
    size_t len = 0;
    FILE *f = open_memstream(&text, &len);

    if (!f) {
        return NULL;
    }
    (void)fprintf(f, "<domainbackup mode='pull'><server transport='%s'",
                  server->socket ? "unix" : "tcp");
    put_attribute(f, "socket", server->socket);
    if (!server->socket) {
        put_attribute(f, "tls", server->tls ? "yes" : NULL);
        put_attribute(f, "name", server->host);
        put_attribute(f, "port", server->port);
    }
    (void)fputs("/><disks>", f);
    for (size_t i = 0; i < count; i++) {
        put_backup_disk(f, &items[i]);
    }
    (void)fputs("</disks></domainbackup>", f);
    return close_text(f, &text);
}

char *libvirt_xml_checkpoint(const char *name,
                             const struct libvirt_xml_item *items, size_t count,
                             bool redefined)
{
    char *text = NULL;
    size_t len = 0;
    FILE *f = open_memstream(&text, &len);

    if (!f) {
        return NULL;
    }
    (void)fputs("<domaincheckpoint><name>", f);
    put_escaped(f, name);
    (void)fputs("</name>", f);
    if (redefined) {
        (void)fprintf(f, "<creationTime>%lld</creationTime>",
                      (long long)time(NULL));
    }
    (void)fputs("<disks>", f);
    for (size_t i = 0; i < count; i++) {
        (void)fputs("<disk", f);
        put_attribute(f, "name", items[i].name);
        put_attribute(f, "checkpoint", items[i].checkpoint ? "bitmap" : "no");
        (void)fputs("/>", f);
    }
    (void)fputs("</disks></domaincheckpoint>", f);
    return close_text(f, &text);
}
