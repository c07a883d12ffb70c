/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_OPTIONS_H
#define NBDELTA_OPTIONS_H

/*
 * The three spellings of what to open, all turned into one JSON object of
 * the shape that QMP's blockdev-add takes:
 *
 *   json:{"driver":"qcow2","file":{"driver":"file","filename":"a"}}
 *   driver=qcow2,file.driver=file,file.filename=a      (",," is a comma)
 *   a                                                  (a plain file name)
 *
 * Dots nest; numbers as last parts ("a.0", "a.1") make arrays.  Values of
 * the second spelling are strings: drivers take "on"/"off" for booleans and
 * "64k" for sizes.  When a key is given twice the last value counts; in JSON it
 * is an error.  Text is UTF-8, at most 64 KiB, nested 64 deep at most.
 */
#include <jansson.h>

#include "nbdelta/types.h"

/* Parse `key=value,...`, or JSON with or without "json:" before it.
 * @implied is the key of a leading value that has none ("qcow2" in
 * "qcow2,a=b"), or NULL.  *options is a new reference.  -EINVAL, with the
 * offending part in
 * @errp. */
int options_parse(const char *text, const char *implied, json_t **options,
                  struct error **errp);

/*
 * Options for an image as a person types it: "json:{...}", a list that
 * begins with "driver=", or a file name.  For a file name the outer
 * driver is @format; there is none when @format is NULL, so that graph_open
 * probes.  Options that are spelled out get @format where they have no
 * "driver", and fail with -EINVAL where they have another.
 * The new reference is *options.
 */
int options_from_image(const char *text, const char *format, json_t **options,
                       struct error **errp);

/* Are they spelled out, as above, and no file name? */
bool options_spelled_out(const char *text);

/* Is it the name of an image of Ceph (rbd:POOL/IMAGE...)? */
bool options_names_rbd(const char *text);

/* The options of a node that such a name stands for: *options is a new object
 * with "driver", "pool", "image" and what else the name has.  -EINVAL. */
int options_from_rbd_name(const char *text, json_t **options,
                          struct error **errp);

/* The name that stands for these options, without any secret; malloc()ed, or
 * NULL: no memory. */
char *options_to_rbd_name(const json_t *options);

/* Take apart the name of an export of another server, as an image may have one
 * (nbd://..., nbd+unix:///..., nbd:unix:...).  *options is a new object with
 * "server", a SocketAddress, and with "export", "tls" and others if the name
 * has them.  -EINVAL: it is no such name. */
int options_from_nbd_name(const char *text, json_t **options,
                          struct error **errp);

#endif /* NBDELTA_OPTIONS_H */
