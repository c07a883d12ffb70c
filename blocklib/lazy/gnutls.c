/* SPDX-License-Identifier: BSD-3-Clause */
/* The functions of gnutls that we use: see lazy.h. */
#include <gnutls/crypto.h>
#include <gnutls/gnutls.h>
#include <gnutls/x509.h>
#include <stddef.h>

#include "lazy/lazy.h"

static struct library library = {
    .name = "libgnutls.so.30",
    .package = "libgnutls30",
};

#define MISSING GNUTLS_E_UNIMPLEMENTED_FEATURE

/* Without the library all else fails, and this tells why. */
const char *gnutls_strerror(int error)
{
    static _Atomic(void *) found;
    void *f = lazy_find(&library, &found, "gnutls_strerror");

    return f ? ((__typeof__(&gnutls_strerror))f)(error) : lazy_why(&library);
}

/* There it is a variable, too. */
static void free_there(void *p)
{
    static _Atomic(void *) found;
    gnutls_free_function *f = lazy_find(&library, &found, "gnutls_free");

    if (f) {
        (*f)(p);
    }
}
gnutls_free_function gnutls_free = free_there;

LAZY(const char *, NULL, gnutls_check_version, (const char *req), req)
LAZY(int, 1, gnutls_error_is_fatal, (int error), error)

LAZY(gnutls_alert_description_t, 0, gnutls_alert_get,
     (gnutls_session_t session), session)
LAZY(const char *, NULL, gnutls_alert_get_name,
     (gnutls_alert_description_t alert), alert)
LAZY(int, MISSING, gnutls_alert_send,
     (gnutls_session_t session, gnutls_alert_level_t level,
      gnutls_alert_description_t desc),
     session, level, desc)
LAZY(int, MISSING, gnutls_alert_send_appropriate,
     (gnutls_session_t session, int err), session, err)
LAZY(int, MISSING, gnutls_anon_allocate_client_credentials,
     (gnutls_anon_client_credentials_t * sc), sc)
LAZY(int, MISSING, gnutls_anon_allocate_server_credentials,
     (gnutls_anon_server_credentials_t * sc), sc)
LAZY_VOID(gnutls_anon_free_client_credentials,
          (gnutls_anon_client_credentials_t sc), sc)
LAZY_VOID(gnutls_anon_free_server_credentials,
          (gnutls_anon_server_credentials_t sc), sc)
LAZY(int, MISSING, gnutls_anon_set_server_known_dh_params,
     (gnutls_anon_server_credentials_t res, gnutls_sec_param_t sec_param), res,
     sec_param)
LAZY(int, MISSING, gnutls_base64_decode2,
     (const gnutls_datum_t *b64_data, gnutls_datum_t *result), b64_data, result)
LAZY(int, MISSING, gnutls_bye,
     (gnutls_session_t session, gnutls_close_request_t how), session, how)
LAZY(int, MISSING, gnutls_certificate_allocate_credentials,
     (gnutls_certificate_credentials_t * res), res)
LAZY_VOID(gnutls_certificate_free_credentials,
          (gnutls_certificate_credentials_t sc), sc)
LAZY(const gnutls_datum_t *, NULL, gnutls_certificate_get_peers,
     (gnutls_session_t session, unsigned int *list_size), session, list_size)
LAZY_VOID(gnutls_certificate_server_set_request,
          (gnutls_session_t session, gnutls_certificate_request_t req), session,
          req)
LAZY(int, MISSING, gnutls_certificate_set_known_dh_params,
     (gnutls_certificate_credentials_t res, gnutls_sec_param_t sec_param), res,
     sec_param)
LAZY(int, MISSING, gnutls_certificate_set_x509_crl_file,
     (gnutls_certificate_credentials_t res, const char *crlfile,
      gnutls_x509_crt_fmt_t type),
     res, crlfile, type)
LAZY(int, MISSING, gnutls_certificate_set_x509_key_file2,
     (gnutls_certificate_credentials_t res, const char *certfile,
      const char *keyfile, gnutls_x509_crt_fmt_t type, const char *pass,
      unsigned int flags),
     res, certfile, keyfile, type, pass, flags)
LAZY(int, MISSING, gnutls_certificate_set_x509_trust_file,
     (gnutls_certificate_credentials_t cred, const char *cafile,
      gnutls_x509_crt_fmt_t type),
     cred, cafile, type)
LAZY(int, MISSING, gnutls_certificate_verify_peers3,
     (gnutls_session_t session, const char *hostname, unsigned int *status),
     session, hostname, status)
LAZY(int, MISSING, gnutls_cipher_decrypt2,
     (gnutls_cipher_hd_t handle, const void *ciphertext, size_t ciphertextlen,
      void *text, size_t textlen),
     handle, ciphertext, ciphertextlen, text, textlen)
LAZY_VOID(gnutls_cipher_deinit, (gnutls_cipher_hd_t handle), handle)
LAZY(int, MISSING, gnutls_cipher_encrypt2,
     (gnutls_cipher_hd_t handle, const void *text, size_t textlen,
      void *ciphertext, size_t ciphertextlen),
     handle, text, textlen, ciphertext, ciphertextlen)
LAZY(int, MISSING, gnutls_cipher_init,
     (gnutls_cipher_hd_t * handle, gnutls_cipher_algorithm_t cipher,
      const gnutls_datum_t *key, const gnutls_datum_t *iv),
     handle, cipher, key, iv)
LAZY_VOID(gnutls_cipher_set_iv,
          (gnutls_cipher_hd_t handle, void *iv, size_t ivlen), handle, iv,
          ivlen)
LAZY(int, MISSING, gnutls_credentials_set,
     (gnutls_session_t session, gnutls_credentials_type_t type, void *cred),
     session, type, cred)
LAZY_VOID(gnutls_deinit, (gnutls_session_t session), session)
LAZY(int, MISSING, gnutls_handshake, (gnutls_session_t session), session)
LAZY_VOID(gnutls_handshake_set_timeout,
          (gnutls_session_t session, unsigned int ms), session, ms)
LAZY(int, MISSING, gnutls_hash,
     (gnutls_hash_hd_t handle, const void *text, size_t textlen), handle, text,
     textlen)
LAZY_VOID(gnutls_hash_deinit, (gnutls_hash_hd_t handle, void *digest), handle,
          digest)
LAZY(int, MISSING, gnutls_hash_fast,
     (gnutls_digest_algorithm_t algorithm, const void *text, size_t textlen,
      void *digest),
     algorithm, text, textlen, digest)
LAZY(int, MISSING, gnutls_hash_init,
     (gnutls_hash_hd_t * dig, gnutls_digest_algorithm_t algorithm), dig,
     algorithm)
LAZY_VOID(gnutls_hash_output, (gnutls_hash_hd_t handle, void *digest), handle,
          digest)
LAZY(int, MISSING, gnutls_hmac,
     (gnutls_hmac_hd_t handle, const void *text, size_t textlen), handle, text,
     textlen)
LAZY_VOID(gnutls_hmac_deinit, (gnutls_hmac_hd_t handle, void *digest), handle,
          digest)
LAZY(int, MISSING, gnutls_hmac_init,
     (gnutls_hmac_hd_t * dig, gnutls_mac_algorithm_t algorithm, const void *key,
      size_t keylen),
     dig, algorithm, key, keylen)
LAZY_VOID(gnutls_hmac_output, (gnutls_hmac_hd_t handle, void *digest), handle,
          digest)
LAZY(int, MISSING, gnutls_init,
     (gnutls_session_t * session, unsigned int flags), session, flags)
LAZY(int, MISSING, gnutls_load_file,
     (const char *filename, gnutls_datum_t *data), filename, data)
LAZY_VOID(gnutls_memset, (void *data, int c, size_t size), data, c, size)
LAZY_VOID(gnutls_priority_deinit, (gnutls_priority_t priority_cache),
          priority_cache)
LAZY(int, MISSING, gnutls_priority_init,
     (gnutls_priority_t * priority_cache, const char *priorities,
      const char **err_pos),
     priority_cache, priorities, err_pos)
LAZY(int, MISSING, gnutls_priority_set,
     (gnutls_session_t session, gnutls_priority_t priority), session, priority)
LAZY(int, MISSING, gnutls_psk_allocate_client_credentials,
     (gnutls_psk_client_credentials_t * sc), sc)
LAZY(int, MISSING, gnutls_psk_allocate_server_credentials,
     (gnutls_psk_server_credentials_t * sc), sc)
LAZY_VOID(gnutls_psk_free_client_credentials,
          (gnutls_psk_client_credentials_t sc), sc)
LAZY_VOID(gnutls_psk_free_server_credentials,
          (gnutls_psk_server_credentials_t sc), sc)
LAZY(const char *, NULL, gnutls_psk_server_get_username,
     (gnutls_session_t session), session)
LAZY(int, MISSING, gnutls_psk_set_client_credentials,
     (gnutls_psk_client_credentials_t res, const char *username,
      const gnutls_datum_t *key, gnutls_psk_key_flags flags),
     res, username, key, flags)
LAZY(int, MISSING, gnutls_psk_set_server_credentials_file,
     (gnutls_psk_server_credentials_t res, const char *password_file), res,
     password_file)
LAZY(int, MISSING, gnutls_psk_set_server_known_dh_params,
     (gnutls_psk_server_credentials_t res, gnutls_sec_param_t sec_param), res,
     sec_param)
LAZY(size_t, 0, gnutls_record_get_max_size, (gnutls_session_t session), session)
LAZY(ssize_t, MISSING, gnutls_record_recv,
     (gnutls_session_t session, void *data, size_t data_size), session, data,
     data_size)
LAZY(ssize_t, MISSING, gnutls_record_send,
     (gnutls_session_t session, const void *data, size_t data_size), session,
     data, data_size)
LAZY(int, MISSING, gnutls_rnd,
     (gnutls_rnd_level_t level, void *data, size_t len), level, data, len)
LAZY(int, MISSING, gnutls_server_name_set,
     (gnutls_session_t session, gnutls_server_name_type_t type,
      const void *name, size_t name_length),
     session, type, name, name_length)
LAZY(void *, NULL, gnutls_session_get_ptr, (gnutls_session_t session), session)
LAZY_VOID(gnutls_session_set_ptr, (gnutls_session_t session, void *ptr),
          session, ptr)
LAZY_VOID(gnutls_session_set_verify_function,
          (gnutls_session_t session, gnutls_certificate_verify_function *func),
          session, func)
LAZY(int, MISSING, gnutls_set_default_priority, (gnutls_session_t session),
     session)
LAZY_VOID(gnutls_transport_set_errno, (gnutls_session_t session, int err),
          session, err)
LAZY_VOID(gnutls_transport_set_int2, (gnutls_session_t session, int r, int s),
          session, r, s)
LAZY_VOID(gnutls_transport_set_ptr,
          (gnutls_session_t session, gnutls_transport_ptr_t ptr), session, ptr)
LAZY_VOID(gnutls_transport_set_pull_function,
          (gnutls_session_t session, gnutls_pull_func pull_func), session,
          pull_func)
LAZY_VOID(gnutls_transport_set_push_function,
          (gnutls_session_t session, gnutls_push_func push_func), session,
          push_func)
LAZY(unsigned, 0, gnutls_x509_crt_check_key_purpose,
     (gnutls_x509_crt_t cert, const char *purpose, unsigned flags), cert,
     purpose, flags)
LAZY_VOID(gnutls_x509_crt_deinit, (gnutls_x509_crt_t cert), cert)
LAZY(time_t, 0, gnutls_x509_crt_get_activation_time, (gnutls_x509_crt_t cert),
     cert)
LAZY(int, MISSING, gnutls_x509_crt_get_basic_constraints,
     (gnutls_x509_crt_t cert, unsigned int *critical, unsigned int *ca,
      int *pathlen),
     cert, critical, ca, pathlen)
LAZY(int, MISSING, gnutls_x509_crt_get_dn,
     (gnutls_x509_crt_t cert, char *buf, size_t *buf_size), cert, buf, buf_size)
LAZY(time_t, 0, gnutls_x509_crt_get_expiration_time, (gnutls_x509_crt_t cert),
     cert)
LAZY(int, MISSING, gnutls_x509_crt_get_extension_by_oid,
     (gnutls_x509_crt_t cert, const char *oid, unsigned indx, void *buf,
      size_t *buf_size, unsigned int *critical),
     cert, oid, indx, buf, buf_size, critical)
LAZY(int, MISSING, gnutls_x509_crt_get_key_usage,
     (gnutls_x509_crt_t cert, unsigned int *key_usage, unsigned int *critical),
     cert, key_usage, critical)
LAZY(int, MISSING, gnutls_x509_crt_import,
     (gnutls_x509_crt_t cert, const gnutls_datum_t *data,
      gnutls_x509_crt_fmt_t format),
     cert, data, format)
LAZY(int, MISSING, gnutls_x509_crt_init, (gnutls_x509_crt_t * cert), cert)
LAZY(int, MISSING, gnutls_x509_crt_list_import,
     (gnutls_x509_crt_t * certs, unsigned int *cert_max,
      const gnutls_datum_t *data, gnutls_x509_crt_fmt_t format,
      unsigned int flags),
     certs, cert_max, data, format, flags)
LAZY(int, MISSING, gnutls_x509_crt_list_verify,
     (const gnutls_x509_crt_t *cert_list, unsigned cert_list_length,
      const gnutls_x509_crt_t *CA_list, unsigned CA_list_length,
      const gnutls_x509_crl_t *CRL_list, unsigned CRL_list_length,
      unsigned int flags, unsigned int *verify),
     cert_list, cert_list_length, CA_list, CA_list_length, CRL_list,
     CRL_list_length, flags, verify)
