/* SPDX-License-Identifier: BSD-3-Clause */
/* Bitmaps of an NBD export: see ask.h. */
#include <libnbd.h>
#include <string.h>

#include "cli/nbd-client.h"
#include "complete/ask.h"
#include "complete/offer.h"

#define CONTEXT "qemu:dirty-bitmap:"

/* Other hosts are not called because somebody has pressed a key. */
bool ask_can_export(const char *uri)
{
    return strncmp(uri, "nbd+unix://", 11) == 0 ||
           strncmp(uri, "nbds+unix://", 12) == 0;
}

static int note_context(void *opaque, const char *name)
{
    if (strncmp(name, CONTEXT, strlen(CONTEXT)) == 0) {
        offer(opaque, name + strlen(CONTEXT), "bitmap of the export");
    }
    return 0;
}

void ask_export_bitmaps(struct offers *o, const void *uri)
{
    nbd_context_callback each = {.callback = note_context, .user_data = o};
    struct nbd_handle *h;

    if (client_connect(uri, &h, NULL) < 0) {
        return;
    }
    if (nbd_aio_is_negotiating(h) && nbd_add_meta_context(h, CONTEXT) == 0) {
        (void)nbd_opt_list_meta_context(h, each);
    }
    nbd_close(h);
}
