/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Metrics for Prometheus: see prom.h.
 *
 *     FILE.PID.tmp   written, flushed  --rename-->  FILE
 */
#include "cli/prom.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "nbdelta/bytes.h"
#include "nbdelta/cleanup.h"
#include "nbdelta/error.h"
#include "nbdelta/text.h"

/* --- Text. --- */

/* Bytes: PROM_LABELS_MAX labels, all of their characters escaped. */
#define SAMPLE_MAX 65536

struct text {
    char buf[SAMPLE_MAX];
    size_t len;
};

__attribute__((format(printf, 2, 3))) static void add(struct text *t,
                                                      const char *fmt, ...)
{
    size_t room = sizeof(t->buf) - t->len;
    va_list ap;

    va_start(ap, fmt);
    int n = vsnprintf(t->buf + t->len, room, fmt, ap);
    va_end(ap);
    if (n > 0) {
        t->len += min_u64((uint64_t)n, room - 1);
    }
}

/* Backslashes are escaped, also those of the texts that we make. */
static void add_value(struct text *t, const char *value)
{
    const char *end = value + strnlen(value, PROM_LABEL_MAX);

    while (value < end) {
        uint32_t code = 0;
        size_t len = text_char(value, &code);

        if (len == 0 || value + len > end) {
            add(t, "\xef\xbf\xbd");
            len = 1;
        } else if (code == '\n') {
            add(t, "\\n");
        } else if (code == '\\' || code == '"') {
            add(t, "\\%c", (int)code);
        } else if (text_is_plain(code)) {
            add(t, "%.*s", (int)len, value);
        } else if (code < 0x100) {
            add(t, "\\\\x%02x", code);
        } else {
            add(t, "\\\\u%04x", code);
        }
        value += len;
    }
}

static void add_label(struct text *t, const char *name, const char *value)
{
    if (name && value) {
        char last = t->buf[t->len - 1];

        add(t, "%s%s=\"", last == '{' ? "" : ",", name);
        add_value(t, value);
        add(t, "\"");
    }
}

/* --- Samples. --- */

static void fail(struct prom *p, int error)
{
    p->error = p->error ? p->error : error;
}

static void put(struct prom *p, const char *text, size_t len)
{
    p->written += len;
    if (p->written > PROM_OUTPUT_MAX) {
        fail(p, -EFBIG);
    }
    if (!p->error) {
        (void)fwrite(text, 1, len, p->f);
    }
}

void prom_begin(struct prom *p, const struct prom_family *family)
{
    json_decref(p->seen);
    p->seen = json_object();
    p->family = family;
    p->described = false;
    if (!p->seen) {
        fail(p, -ENOMEM);
    }
}

static void describe(struct prom *p)
{
    static const char *const types[] = {"gauge", "counter", "histogram"};
    const struct prom_family *f = p->family;
    struct text t = {.len = 0};

    add(&t, "# HELP %s%s %s\n# TYPE %s%s %s\n", p->prefix, f->name, f->help,
        p->prefix, f->name, types[f->type]);
    put(p, t.buf, t.len);
    p->described = true;
}

/* NAME{LABELS}, which is what makes a sample that one and no other. */
static void begin_sample(const struct prom *p, struct text *t,
                         const char *suffix, const struct prom_label *labels,
                         const char *le)
{
    t->len = 0;
    add(t, "%s%s%s{", p->prefix, p->family->name, suffix);
    add_label(t, p->common.name, p->common.value);
    for (int i = 0; labels && labels[i].name; i++) {
        add_label(t, labels[i].name, labels[i].value);
    }
    add_label(t, "le", le);
    add(t, "}");
}

static bool is_new(struct prom *p, const struct text *t)
{
    if (p->error || json_object_get(p->seen, t->buf)) {
        return false;
    }
    if (json_object_set_new_nocheck(p->seen, t->buf, json_true()) < 0) {
        fail(p, -ENOMEM);
    }
    if (!p->described) {
        describe(p);
    }
    return true;
}

static void put_sample(struct prom *p, const struct prom_label *labels,
                       const char *number)
{
    struct text t;

    begin_sample(p, &t, "", labels, NULL);
    if (is_new(p, &t)) {
        add(&t, " %s\n", number);
        put(p, t.buf, t.len);
    }
}

void prom_sample(struct prom *p, const struct prom_label *labels, double value)
{
    char number[32];

    (void)snprintf(number, sizeof(number), "%.15g", value);
    put_sample(p, labels, number);
}

void prom_count(struct prom *p, const struct prom_label *labels, uint64_t value)
{
    char number[32];

    (void)snprintf(number, sizeof(number), "%" PRIu64, value);
    put_sample(p, labels, number);
}

/* --- Histograms. --- */

#define BINS_MAX    256
#define NS_MAX      1e15 /* of a boundary: digits that are printed */
#define SECONDS(ns) ((ns) / 1e9)

static bool is_histogram(const json_t *boundaries, const json_t *bins)
{
    size_t n = json_array_size(boundaries);
    double last = 0;

    if (n == 0 || n >= BINS_MAX || json_array_size(bins) != n + 1) {
        return false;
    }
    for (size_t i = 0; i <= n; i++) {
        double at = json_number_value(json_array_get(boundaries, i));
        const json_t *bin = json_array_get(bins, i);

        if (!json_is_integer(bin) || json_integer_value(bin) < 0 ||
            (i < n && !(at > last && at < NS_MAX))) {
            return false;
        }
        last = at;
    }
    return true;
}

/* Each bucket has those before it, too. */
static uint64_t put_buckets(struct prom *p, struct text *t,
                            const struct prom_label *labels,
                            const json_t *boundaries, const json_t *bins)
{
    size_t n = json_array_size(boundaries);
    uint64_t sum = 0;

    for (size_t i = 0; i <= n; i++) {
        char le[32] = "+Inf";

        if (i < n) {
            double at = json_number_value(json_array_get(boundaries, i));

            (void)snprintf(le, sizeof(le), "%.15g", SECONDS(at));
        }
        sum += (uint64_t)json_integer_value(json_array_get(bins, i));
        begin_sample(p, t, "_bucket", labels, le);
        add(t, " %" PRIu64 "\n", sum);
        put(p, t->buf, t->len);
    }
    return sum;
}

void prom_histogram(struct prom *p, const struct prom_label *labels,
                    const json_t *histogram, double sum_ns)
{
    const json_t *boundaries = json_object_get(histogram, "boundaries");
    const json_t *bins = json_object_get(histogram, "bins");
    struct text t;

    begin_sample(p, &t, "", labels, NULL);
    if (!is_histogram(boundaries, bins) || !is_new(p, &t)) {
        return;
    }
    uint64_t count = put_buckets(p, &t, labels, boundaries, bins);
    begin_sample(p, &t, "_sum", labels, NULL);
    add(&t, " %.15g\n", SECONDS(sum_ns));
    put(p, t.buf, t.len);
    begin_sample(p, &t, "_count", labels, NULL);
    add(&t, " %" PRIu64 "\n", count);
    put(p, t.buf, t.len);
}

int prom_end(struct prom *p)
{
    json_decref(p->seen);
    p->seen = NULL;
    return p->error;
}

/* --- Files. --- */

/* Its mode does not come from the umask of cron. */
static int flush_file(FILE *f)
{
    if (fflush(f) != 0 || fchmod(fileno(f), 0644) < 0 || fsync(fileno(f)) < 0) {
        return -errno;
    }
    return ferror(f) ? -EIO : 0;
}

int prom_to_file(const char *file, int (*write)(FILE *f, void *opaque),
                 void *opaque, struct error **errp)
{
    CLEANUP_FREE char *tmp = NULL;

    if (asprintf(&tmp, "%s.%d.tmp", file, (int)getpid()) < 0) {
        tmp = NULL;
        return error_nomem(errp);
    }
    (void)unlink(tmp); /* of a process of the same number that was killed */
    int fd = open(tmp, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC,
                  0644);
    FILE *f = fd < 0 ? NULL : fdopen(fd, "w");
    int r = f ? write(f, opaque) : -errno;
    r = r < 0 ? r : flush_file(f);
    if (f && fclose(f) != 0 && r == 0) {
        r = -errno;
    } else if (!f && fd >= 0) {
        (void)close(fd);
    }
    if (r == 0 && rename(tmp, file) < 0) {
        r = -errno;
    }
    if (r < 0 && fd >= 0) {
        (void)unlink(tmp);
    }
    return r < 0 ? error_set(errp, -r, "cannot write '%s': %s", file,
                             strerror(-r))
                 : 0;
}
