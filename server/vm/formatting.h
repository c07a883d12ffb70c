/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_SERVER_VM_FORMATTING_H
#define NBDELTA_SERVER_VM_FORMATTING_H

struct daemon;
struct node;

/* With --vm-compat: say on standard output that an image is made, as QEMU does.
 * It is @format (NULL: qcow2), has the size of @of, and @backing (or NULL)
 * below it. */
void vm_tell_formatting(const struct daemon *d, const char *filename,
                        const char *format, const struct node *of,
                        const struct node *backing);

#endif /* NBDELTA_SERVER_VM_FORMATTING_H */
