/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Load an NBD server with requests of one kind, and tell how fast it was.  The
 * usage below has the options.
 */
#include "load.h"
#include "nbd-raw.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static const char usage[] =
    "usage: nbd-load -s ADDRESS [OPTION...]\n"
    "  -s ADDRESS   the path of a Unix socket (with a '/'), or HOST:PORT\n"
    "  -e EXPORT    the name of the export (\"\")\n"
    "  -p read|write\n"
    "               what to do (read)\n"
    "  -b BYTES     of a request (4096); K, M, G, T may follow a number\n"
    "  -d DEPTH     requests at a time on each connection, to 1024 (1)\n"
    "  -c COUNT     connections (1); one thread has them all\n"
    "  -t SECONDS   how long (2, or as long as -n or -1 take)\n"
    "  -n COUNT     of requests, at the most\n"
    "  -r           at random (without -r and -1: in order)\n"
    "  -1           first touches: each piece of the disk once, in random "
    "order\n"
    "  -g BYTES     the size of a piece (64K)\n"
    "  -F FIRST     leave out so many bytes of the disk at its beginning\n"
    "  -S SIZE      use only so many bytes\n"
    "  -P SEED      of what is written and of the order (1)\n"
    "  -v           the bytes that are read must be what -p write writes\n"
    "  -f           end with a flush, and count its time\n"
    "  -i           only connect; print 'ready', and stay until standard "
    "input\n"
    "               ends\n"
    "  -o FILE      write the result as JSON to FILE ('-': standard output)\n";

_Noreturn static void wrong_usage(void)
{
    (void)fputs(usage, stderr);
    exit(2);
}

static uint64_t number(const char *text, uint64_t most)
{
    static const char units[] = "KMGT";
    char *end;

    errno = 0;
    unsigned long long v = strtoull(text, &end, 10);
    const char *unit = *end ? strchr(units, *end) : NULL;
    unsigned shift = unit ? 10 * (unsigned)(unit - units + 1) : 0;
    if (errno || end == text || (*end && (!unit || end[1])) ||
        v > most >> shift) {
        raw_fail(text, "no such number");
    }
    return v << shift;
}

static double real(const char *text)
{
    char *end;
    double v = strtod(text, &end);
    if (end == text || *end || !(v >= 0)) {
        raw_fail(text, "no such number");
    }
    return v;
}

static void write_json(const struct load_options *o,
                       const struct load_result *r, const char *path)
{
    FILE *f = strcmp(path, "-") == 0 ? stdout : fopen(path, "w");

    if (!f) {
        raw_fail(path, strerror(errno));
    }
    (void)fprintf(f,
                  "{\"requests\": %lu, \"seconds\": %.6f, \"iops\": %.1f, "
                  "\"mib_s\": %.2f, \"p50_us\": %.1f, \"p99_us\": %.1f, "
                  "\"max_us\": %.1f, \"own_cpu_us\": %.3f, \"size\": %lu}\n",
                  (unsigned long)r->requests, r->seconds,
                  (double)r->requests / r->seconds,
                  (double)r->requests * o->block / r->seconds / (1 << 20),
                  (double)load_latency_at(&r->latency, 0.5) / 1e3,
                  (double)load_latency_at(&r->latency, 0.99) / 1e3,
                  (double)r->latency.max_ns / 1e3,
                  r->cpu * 1e6 / (double)r->requests,
                  (unsigned long)r->export_size);
    if (ferror(f) || (f != stdout && fclose(f) != 0)) {
        raw_fail(path, "could not be written");
    }
}

static void print(const struct load_options *o, const struct load_result *r)
{
    (void)printf("%lu requests of %u bytes in %.2f s: %.0f a second, "
                 "%.0f MiB/s\n"
                 "microseconds: p50 %.1f, p99 %.1f, max %.1f; "
                 "our own CPU %.3f a request\n",
                 (unsigned long)r->requests, o->block, r->seconds,
                 (double)r->requests / r->seconds,
                 (double)r->requests * o->block / r->seconds / (1 << 20),
                 (double)load_latency_at(&r->latency, 0.5) / 1e3,
                 (double)load_latency_at(&r->latency, 0.99) / 1e3,
                 (double)r->latency.max_ns / 1e3,
                 r->cpu * 1e6 / (double)r->requests);
}

struct arguments {
    struct load_options o;
    const char *json;
    bool idle;
};

static void parse_one(struct arguments *a, int option, const char *value)
{
    struct load_options *o = &a->o;

    switch (option) {
    case 's':
        o->address = value;
        break;
    case 'e':
        o->export = value;
        break;
    case 'p':
        o->write = strcmp(value, "write") == 0;
        if (!o->write && strcmp(value, "read") != 0) {
            wrong_usage();
        }
        break;
    case 'b':
        o->block = (uint32_t)number(value, 32 << 20);
        break;
    case 'd':
        o->depth = (unsigned)number(value, 1024);
        break;
    case 'c':
        o->connections = (unsigned)number(value, 100000);
        break;
    case 't':
        o->seconds = real(value);
        break;
    case 'n':
        o->count = number(value, UINT64_MAX);
        break;
    case 'r':
        o->order = LOAD_RANDOM;
        break;
    case '1':
        o->order = LOAD_ONCE;
        break;
    case 'g':
        o->piece = (uint32_t)number(value, 1 << 30);
        break;
    case 'F':
        o->first = number(value, INT64_MAX);
        break;
    case 'S':
        o->size = number(value, INT64_MAX);
        break;
    case 'P':
        o->seed = number(value, UINT64_MAX);
        break;
    case 'v':
        o->verify = true;
        break;
    case 'f':
        o->flush = true;
        break;
    case 'i':
        a->idle = true;
        break;
    case 'o':
        a->json = value;
        break;
    default:
        wrong_usage();
    }
}

int main(int argc, char **argv)
{
    struct arguments a = {.o = {.export = "",
                                .order = LOAD_SEQUENTIAL,
                                .block = 4096,
                                .piece = 65536,
                                .depth = 1,
                                .connections = 1,
                                .seed = 1}};
    struct load_result result;
    int option;

    while ((option = getopt(argc, argv, "s:e:p:b:d:c:t:n:r1g:F:S:P:vfio:")) !=
           -1) {
        parse_one(&a, option, optarg);
    }
    if (optind != argc || !a.o.address || a.o.block == 0 || a.o.depth == 0 ||
        a.o.connections == 0 || (a.o.verify && a.o.write)) {
        wrong_usage();
    }
    if (a.idle) {
        load_idle(&a.o);
        return 0;
    }
    if (a.o.seconds == 0 && a.o.count == 0 && a.o.order != LOAD_ONCE) {
        a.o.seconds = 2;
    }
    load_run(&a.o, &result);
    if (a.json) {
        write_json(&a.o, &result, a.json);
    } else {
        print(&a.o, &result);
    }
    return 0;
}
