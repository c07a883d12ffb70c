/* SPDX-License-Identifier: BSD-3-Clause */
/* The functions of libnbd that we use: see lazy.h. */
#include <errno.h>
#include <libnbd.h>
#include <stddef.h>

#include "lazy/lazy.h"

static struct library library = {
    .name = "libnbd.so.0",
    .package = "libnbd0",
};

#define MISSING (-1)

/* Without the library nbd_create() fails, and these tell why. */
const char *nbd_get_error(void)
{
    static _Atomic(void *) found;
    void *f = lazy_find(&library, &found, "nbd_get_error");

    return f ? ((__typeof__(&nbd_get_error))f)() : lazy_why(&library);
}

LAZY(int, ENOTSUP, nbd_get_errno, (void))

LAZY(int, MISSING, nbd_add_meta_context,
     (struct nbd_handle * h, const char *name), h, name)
LAZY(int64_t, MISSING, nbd_aio_block_status,
     (struct nbd_handle * h, uint64_t count, uint64_t offset,
      nbd_extent_callback extent_callback,
      nbd_completion_callback completion_callback, uint32_t flags),
     h, count, offset, extent_callback, completion_callback, flags)
LAZY(int64_t, MISSING, nbd_aio_cache,
     (struct nbd_handle * h, uint64_t count, uint64_t offset,
      nbd_completion_callback completion_callback, uint32_t flags),
     h, count, offset, completion_callback, flags)
LAZY(int, MISSING, nbd_aio_connect_socket, (struct nbd_handle * h, int sock), h,
     sock)
LAZY(int, MISSING, nbd_aio_connect_tcp,
     (struct nbd_handle * h, const char *hostname, const char *port), h,
     hostname, port)
LAZY(int, MISSING, nbd_aio_connect_uri,
     (struct nbd_handle * h, const char *uri), h, uri)
LAZY(int, MISSING, nbd_aio_disconnect, (struct nbd_handle * h, uint32_t flags),
     h, flags)
LAZY(int64_t, MISSING, nbd_aio_flush,
     (struct nbd_handle * h, nbd_completion_callback completion_callback,
      uint32_t flags),
     h, completion_callback, flags)
LAZY(unsigned, 0, nbd_aio_get_direction, (struct nbd_handle * h), h)
LAZY(int, MISSING, nbd_aio_get_fd, (struct nbd_handle * h), h)
LAZY(int, MISSING, nbd_aio_is_closed, (struct nbd_handle * h), h)
LAZY(int, MISSING, nbd_aio_is_connecting, (struct nbd_handle * h), h)
LAZY(int, MISSING, nbd_aio_is_dead, (struct nbd_handle * h), h)
LAZY(int, MISSING, nbd_aio_is_negotiating, (struct nbd_handle * h), h)
LAZY(int, MISSING, nbd_aio_is_ready, (struct nbd_handle * h), h)
LAZY(int, MISSING, nbd_aio_notify_read, (struct nbd_handle * h), h)
LAZY(int, MISSING, nbd_aio_notify_write, (struct nbd_handle * h), h)
LAZY(int64_t, MISSING, nbd_aio_pread_structured,
     (struct nbd_handle * h, void *buf, size_t count, uint64_t offset,
      nbd_chunk_callback chunk_callback,
      nbd_completion_callback completion_callback, uint32_t flags),
     h, buf, count, offset, chunk_callback, completion_callback, flags)
LAZY(int64_t, MISSING, nbd_aio_pwrite,
     (struct nbd_handle * h, const void *buf, size_t count, uint64_t offset,
      nbd_completion_callback completion_callback, uint32_t flags),
     h, buf, count, offset, completion_callback, flags)
LAZY(int64_t, MISSING, nbd_aio_trim,
     (struct nbd_handle * h, uint64_t count, uint64_t offset,
      nbd_completion_callback completion_callback, uint32_t flags),
     h, count, offset, completion_callback, flags)
LAZY(int64_t, MISSING, nbd_aio_zero,
     (struct nbd_handle * h, uint64_t count, uint64_t offset,
      nbd_completion_callback completion_callback, uint32_t flags),
     h, count, offset, completion_callback, flags)
LAZY(int, MISSING, nbd_block_status,
     (struct nbd_handle * h, uint64_t count, uint64_t offset,
      nbd_extent_callback extent_callback, uint32_t flags),
     h, count, offset, extent_callback, flags)
LAZY(int, MISSING, nbd_can_cache, (struct nbd_handle * h), h)
LAZY(int, MISSING, nbd_can_df, (struct nbd_handle * h), h)
LAZY(int, MISSING, nbd_can_fast_zero, (struct nbd_handle * h), h)
LAZY(int, MISSING, nbd_can_flush, (struct nbd_handle * h), h)
LAZY(int, MISSING, nbd_can_fua, (struct nbd_handle * h), h)
LAZY(int, MISSING, nbd_can_meta_context,
     (struct nbd_handle * h, const char *metacontext), h, metacontext)
LAZY(int, MISSING, nbd_can_multi_conn, (struct nbd_handle * h), h)
LAZY(int, MISSING, nbd_can_trim, (struct nbd_handle * h), h)
LAZY(int, MISSING, nbd_can_zero, (struct nbd_handle * h), h)
LAZY_VOID(nbd_close, (struct nbd_handle * h), h)
LAZY(const char *, NULL, nbd_connection_state, (struct nbd_handle * h), h)
LAZY(struct nbd_handle *, NULL, nbd_create, (void))
LAZY(int64_t, MISSING, nbd_get_block_size,
     (struct nbd_handle * h, int size_type), h, size_type)
LAZY(char *, NULL, nbd_get_export_description, (struct nbd_handle * h), h)
LAZY(char *, NULL, nbd_get_export_name, (struct nbd_handle * h), h)
LAZY(const char *, NULL, nbd_get_protocol, (struct nbd_handle * h), h)
LAZY(int64_t, MISSING, nbd_get_size, (struct nbd_handle * h), h)
LAZY(int, MISSING, nbd_get_structured_replies_negotiated,
     (struct nbd_handle * h), h)
LAZY(int, MISSING, nbd_get_tls_negotiated, (struct nbd_handle * h), h)
LAZY(int, MISSING, nbd_is_read_only, (struct nbd_handle * h), h)
LAZY(int, MISSING, nbd_is_rotational, (struct nbd_handle * h), h)
LAZY(int, MISSING, nbd_opt_go, (struct nbd_handle * h), h)
LAZY(int, MISSING, nbd_opt_list,
     (struct nbd_handle * h, nbd_list_callback list_callback), h, list_callback)
LAZY(int, MISSING, nbd_opt_list_meta_context,
     (struct nbd_handle * h, nbd_context_callback context_callback), h,
     context_callback)
LAZY(int, MISSING, nbd_poll, (struct nbd_handle * h, int timeout), h, timeout)
LAZY(int, MISSING, nbd_set_export_name,
     (struct nbd_handle * h, const char *export_name), h, export_name)
LAZY(int, MISSING, nbd_set_full_info, (struct nbd_handle * h, bool request), h,
     request)
LAZY(int, MISSING, nbd_set_opt_mode, (struct nbd_handle * h, bool enable), h,
     enable)
LAZY(int, MISSING, nbd_set_strict_mode, (struct nbd_handle * h, uint32_t flags),
     h, flags)
LAZY(int, MISSING, nbd_set_tls, (struct nbd_handle * h, int tls), h, tls)
LAZY(int, MISSING, nbd_set_tls_certificates,
     (struct nbd_handle * h, const char *dir), h, dir)
LAZY(int, MISSING, nbd_set_tls_psk_file,
     (struct nbd_handle * h, const char *filename), h, filename)
LAZY(int, MISSING, nbd_set_tls_username,
     (struct nbd_handle * h, const char *username), h, username)
LAZY(int, MISSING, nbd_set_tls_verify_peer,
     (struct nbd_handle * h, bool verify), h, verify)
LAZY(int, MISSING, nbd_set_uri_allow_local_file,
     (struct nbd_handle * h, bool allow), h, allow)
LAZY(int, MISSING, nbd_shutdown, (struct nbd_handle * h, uint32_t flags), h,
     flags)
