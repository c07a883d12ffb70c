/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * One thread has all connections, and works in batches, so that a client costs
 * little beside the server that it measures:
 *
 *     recv: as many replies as there are -> each frees a slot
 *        -> a new request for each free slot -> one sendmsg for all of them
 *
 * There is one look at the clock per recv and one per sendmsg, so a latency has
 * what a request waits in both batches.  A single connection is waited for in
 * recv itself, many by epoll.  Nothing waits for room to send alone: a server
 * may take no request before its replies were taken.
 */
#include "load.h"
#include "nbd-raw.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum { BUFFER = 256 << 10, EVENTS = 64, IOV_AT_ONCE = 1024 };

struct slot {
    uint64_t offset;
    double sent;
    char header[RAW_REQUEST_SIZE];
};

struct conn {
    struct raw server;
    struct slot *slots;
    unsigned *vacant; /* a stack of numbers of slots */
    unsigned vacancies;

    struct iovec *out; /* what is to be sent, from out_at on */
    unsigned out_at, out_end;
    bool watches_out;

    size_t have; /* bytes in the buffer: the beginning of a header */
    char start[RAW_REPLY_SIZE];
    size_t left;   /* bytes of data of a reply that are still to come */
    unsigned slot; /* whose they are */
};

struct run {
    const struct load_options *o;
    struct load_result *result;
    struct load_plan plan;
    struct conn *conns;
    uint64_t asked; /* requests that were made */
    bool over;      /* no more of them */
    double begin;
    char *buffer;
    int epoll; /* -1 with one connection */
};

static void *allocate(size_t count, size_t size)
{
    void *p = calloc(count, size);
    if (!p) {
        raw_fail("out of memory", NULL);
    }
    return p;
}

static void conn_init(struct run *r, struct conn *c)
{
    const struct load_options *o = r->o;

    raw_open(&c->server, o->address, o->export, NULL);
    c->slots = allocate(o->depth, sizeof(*c->slots));
    c->vacant = allocate(o->depth, sizeof(*c->vacant));
    c->out = allocate(2 * (size_t)o->depth, sizeof(*c->out));
    for (unsigned i = 0; i < o->depth; i++) {
        c->vacant[c->vacancies++] = o->depth - 1 - i;
    }
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
    if (r->epoll >= 0 &&
        epoll_ctl(r->epoll, EPOLL_CTL_ADD, c->server.fd, &e) < 0) {
        raw_fail("epoll_ctl", strerror(errno));
    }
}

/* Requests for all free slots go to the end of what is to be sent. */
static void make_requests(struct run *r, struct conn *c)
{
    const struct load_options *o = r->o;

    if (c->out_at == c->out_end) {
        c->out_at = c->out_end = 0;
    } else if (c->out_at > 0) { /* slots that are free have left the list */
        c->out_end -= c->out_at;
        memmove(c->out, c->out + c->out_at, c->out_end * sizeof(*c->out));
        c->out_at = 0;
    }
    double now = c->vacancies > 0 && !r->over ? raw_now() : 0;
    while (c->vacancies > 0 && !r->over) {
        unsigned i = c->vacant[c->vacancies - 1];
        struct slot *s = &c->slots[i];
        if ((o->count > 0 && r->asked == o->count) ||
            !load_plan_next(&r->plan, &s->offset)) {
            r->over = true;
            return;
        }
        c->vacancies--;
        r->asked++;
        s->sent = now;
        (void)raw_request(s->header, o->write ? RAW_WRITE : RAW_READ, i,
                          s->offset, o->block);
        c->out[c->out_end++] = (struct iovec){s->header, RAW_REQUEST_SIZE};
        if (o->write) {
            c->out[c->out_end++] = (struct iovec){
                (void *)(uintptr_t)load_data(s->offset), o->block};
        }
    }
}

static void watch(struct run *r, struct conn *c, bool out)
{
    struct epoll_event e = {.events = EPOLLIN | (out ? EPOLLOUT : 0),
                            .data.ptr = c};

    if (r->epoll >= 0 && out != c->watches_out &&
        epoll_ctl(r->epoll, EPOLL_CTL_MOD, c->server.fd, &e) < 0) {
        raw_fail("epoll_ctl", strerror(errno));
    }
    c->watches_out = out;
}

/* As much as the socket takes. */
static void send_requests(struct run *r, struct conn *c)
{
    while (c->out_at < c->out_end) {
        unsigned count = c->out_end - c->out_at;
        struct msghdr m = {.msg_iov = c->out + c->out_at,
                           .msg_iovlen = count < IOV_AT_ONCE ? count
                                                             : IOV_AT_ONCE};
        ssize_t n = sendmsg(c->server.fd, &m, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno == EAGAIN) {
            break;
        }
        if (n < 0) {
            raw_fail("the server takes nothing", strerror(errno));
        }
        while (n > 0) {
            struct iovec *v = &c->out[c->out_at];
            size_t done = (size_t)n < v->iov_len ? (size_t)n : v->iov_len;
            v->iov_base = (char *)v->iov_base + done;
            v->iov_len -= done;
            n -= (ssize_t)done;
            c->out_at += v->iov_len == 0;
        }
    }
    watch(r, c, c->out_at < c->out_end);
}

static void reply_done(struct run *r, struct conn *c, unsigned slot, double now)
{
    struct load_result *result = r->result;

    load_latency_add(&result->latency,
                     (uint64_t)((now - c->slots[slot].sent) * 1e9));
    result->requests++;
    c->vacant[c->vacancies++] = slot;
}

static void reply_begins(struct run *r, struct conn *c, const char *head,
                         double now)
{
    uint64_t slot = raw_load64(head + 8);

    if (raw_load32(head) != RAW_REPLY_MAGIC || slot >= r->o->depth) {
        raw_fail("a reply to nothing", NULL);
    }
    if (raw_load32(head + 4) != 0) {
        raw_fail("a request failed", strerror((int)raw_load32(head + 4)));
    }
    c->slot = (unsigned)slot;
    c->left = r->o->write ? 0 : r->o->block;
    if (c->left == 0) {
        reply_done(r, c, c->slot, now);
    }
}

/* @len bytes of replies that have come. */
static void parse(struct run *r, struct conn *c, const char *p, size_t len,
                  double now)
{
    while (len > 0) {
        size_t n;
        if (c->left > 0) {
            n = c->left < len ? c->left : len;
            const struct slot *s = &c->slots[c->slot];
            if (r->o->verify &&
                memcmp(p, load_data(s->offset + r->o->block - c->left), n) !=
                    0) {
                raw_fail("other bytes than were written", NULL);
            }
            c->left -= n;
            if (c->left == 0) {
                reply_done(r, c, c->slot, now);
            }
        } else if (c->have > 0 || len < RAW_REPLY_SIZE) {
            n = RAW_REPLY_SIZE - c->have < len ? RAW_REPLY_SIZE - c->have : len;
            memcpy(c->start + c->have, p, n);
            c->have += n;
            if (c->have == RAW_REPLY_SIZE) {
                c->have = 0;
                reply_begins(r, c, c->start, now);
            }
        } else {
            n = RAW_REPLY_SIZE;
            reply_begins(r, c, p, now);
        }
        p += n;
        len -= n;
    }
}

static void receive(struct run *r, struct conn *c)
{
    ssize_t n = recv(c->server.fd, r->buffer, BUFFER,
                     r->epoll >= 0 || c->out_at < c->out_end ? MSG_DONTWAIT
                                                             : 0);

    if (n < 0 && errno == EAGAIN) {
        return;
    }
    if (n <= 0) {
        raw_fail("the server has gone", n < 0 ? strerror(errno) : NULL);
    }
    double now = raw_now();
    parse(r, c, r->buffer, (size_t)n, now);
    r->over |= r->o->seconds > 0 && now - r->begin >= r->o->seconds;
}

static void turn(struct run *r, struct conn *c)
{
    receive(r, c);
    make_requests(r, c);
    send_requests(r, c);
}

static void wait_one(struct run *r)
{
    struct conn *c = &r->conns[0];

    if (c->out_at < c->out_end) {
        struct pollfd p = {.fd = c->server.fd, .events = POLLIN | POLLOUT};
        (void)poll(&p, 1, -1);
    }
    turn(r, c);
}

static void wait_many(struct run *r)
{
    struct epoll_event events[EVENTS];
    int n = epoll_wait(r->epoll, events, EVENTS, -1);

    for (int i = 0; i < n; i++) {
        turn(r, events[i].data.ptr);
    }
}

/* All has been replied to, so this is the only request. */
static void flush(const struct conn *c)
{
    char head[RAW_REQUEST_SIZE];

    (void)raw_request(head, RAW_FLUSH, 0, 0, 0);
    raw_put(&c->server, head, RAW_REQUEST_SIZE);
    raw_get(&c->server, head, RAW_REPLY_SIZE);
    if (raw_load32(head + 4) != 0) {
        raw_fail("the flush failed", strerror((int)raw_load32(head + 4)));
    }
}

static double own_cpu(void)
{
    struct rusage u;

    (void)getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
           (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

static void run_open(struct run *r)
{
    const struct load_options *o = r->o;

    r->epoll = o->connections > 1 ? epoll_create1(EPOLL_CLOEXEC) : -1;
    r->conns = allocate(o->connections, sizeof(*r->conns));
    for (unsigned i = 0; i < o->connections; i++) {
        conn_init(r, &r->conns[i]);
    }
    r->result->export_size = r->conns[0].server.size;
}

static void run_close(struct run *r)
{
    char head[RAW_REQUEST_SIZE];

    (void)raw_request(head, RAW_DISCONNECT, 0, 0, 0);
    for (unsigned i = 0; i < r->o->connections; i++) {
        struct conn *c = &r->conns[i];
        raw_put(&c->server, head, RAW_REQUEST_SIZE);
        (void)close(c->server.fd);
        free(c->slots);
        free(c->vacant);
        free(c->out);
    }
    free(r->conns);
    if (r->epoll >= 0) {
        (void)close(r->epoll);
    }
}

void load_run(const struct load_options *o, struct load_result *result)
{
    struct run r = {.o = o, .result = result};

    *result = (struct load_result){0};
    load_data_init(o->seed, o->block);
    r.buffer = allocate(1, BUFFER);
    run_open(&r);
    load_plan_init(&r.plan, o, result->export_size);
    double cpu = own_cpu();
    r.begin = raw_now();
    for (unsigned i = 0; i < o->connections; i++) {
        make_requests(&r, &r.conns[i]);
        send_requests(&r, &r.conns[i]);
    }
    while (!r.over || result->requests < r.asked) {
        if (r.epoll >= 0) {
            wait_many(&r);
        } else {
            wait_one(&r);
        }
    }
    if (o->flush) {
        flush(&r.conns[0]);
    }
    result->seconds = raw_now() - r.begin;
    result->cpu = own_cpu() - cpu;
    run_close(&r);
    free(r.buffer);
}

void load_idle(const struct load_options *o)
{
    struct load_result result;
    struct run r = {.o = o, .result = &result};
    char c;

    run_open(&r);
    (void)!write(STDOUT_FILENO, "ready\n", 6);
    while (read(STDIN_FILENO, &c, 1) > 0) {
    }
    run_close(&r);
}
