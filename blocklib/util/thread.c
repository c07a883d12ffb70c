/* SPDX-License-Identifier: BSD-3-Clause */
/* Threads and locks: see thread.h. */
#include "nbdelta/thread.h"

#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define NS_PER_SEC UINT64_C(1000000000)
#define NS_PER_MS  UINT64_C(1000000)

/* These calls fail only when a lock is misused: there is no way to go on. */
#define MUST(call)         \
    do {                   \
        if ((call) != 0) { \
            abort();       \
        }                  \
    } while (0)

/* --- Is it the right order? --- */

#ifdef LOCKCHECK

#define HELD_MAX 64

struct held {
    const void *lock;
    enum lock_rank rank;
    const void *owner;
};

/* This thread's locks; trees that are held for writing are only counted. */
static _Thread_local struct {
    struct held held[HELD_MAX];
    unsigned count;
    unsigned trees;
} mine;

static void lock_fault(const char *what, enum lock_rank taken,
                       enum lock_rank held)
{
    (void)fprintf(stderr, "LOCKCHECK: %s: lock %d, holding %d\n", what,
                  (int)taken, (int)held);
    abort();
}

static bool is_mine(enum lock_rank rank)
{
    for (unsigned i = 0; i < mine.count; i++) {
        if (mine.held[i].rank == rank) {
            return true;
        }
    }
    return false;
}

/* May a lock of @c be taken after @h? */
static bool in_order(const struct lock_check *c, const struct held *h)
{
    return c->rank > h->rank || (c->owner && h->owner && c->owner != h->owner);
}

/* Call it before the thread waits for the lock. */
static void lock_before(const void *lock, const struct lock_check *c)
{
    for (unsigned i = 0; i < mine.count; i++) {
        if (mine.held[i].lock == lock) {
            lock_fault("taken twice", c->rank, c->rank);
        }
        if (!in_order(c, &mine.held[i])) {
            lock_fault("wrong order", c->rank, mine.held[i].rank);
        }
    }
    if (mine.trees > 0 && (c->rank < LOCK_TREE ||
                           (c->rank == LOCK_TREE && !is_mine(LOCK_CONTROL)))) {
        lock_fault("wrong order", c->rank, LOCK_TREE);
    }
}

static void lock_after(const void *lock, struct lock_check *c, bool shared)
{
    if (!shared) {
        atomic_store(&c->holder, &mine);
    }
    if (c->rank == LOCK_TREE && !shared) {
        mine.trees++;
        return;
    }
    if (mine.count == HELD_MAX) {
        lock_fault("too many", c->rank, mine.held[HELD_MAX - 1].rank);
    }
    mine.held[mine.count++] = (struct held){lock, c->rank, c->owner};
}

static void lock_gone(const void *lock, struct lock_check *c)
{
    if (atomic_load(&c->holder) == &mine) {
        atomic_store(&c->holder, NULL);
        if (c->rank == LOCK_TREE) {
            mine.trees--;
            return;
        }
    }
    for (unsigned i = mine.count; i-- > 0;) {
        if (mine.held[i].lock == lock) {
            for (mine.count--; i < mine.count; i++) {
                mine.held[i] = mine.held[i + 1];
            }
            return;
        }
    }
    lock_fault("not held", c->rank, c->rank);
}

static void lock_made(struct lock_check *c, enum lock_rank rank,
                      const void *owner)
{
    *c = (struct lock_check){.rank = rank, .owner = owner};
}

#define LOCK_MADE(l, rank, owner) lock_made(&(l)->check, rank, owner)
#define LOCK_BEFORE(l)            lock_before(l, &(l)->check)
#define LOCK_AFTER(l, shared)     lock_after(l, &(l)->check, shared)
#define LOCK_GONE(l)              lock_gone(l, &(l)->check)

void mutex_is_held(const mutex_t *m) NO_LOCK_ANALYSIS
{
    if (atomic_load(&m->check.holder) != &mine) {
        lock_fault("not held", m->check.rank, m->check.rank);
    }
}

#else
#define LOCK_MADE(l, rank, owner) ((void)(rank), (void)(owner))
#define LOCK_BEFORE(l)            ((void)0)
#define LOCK_AFTER(l, shared)     ((void)0)
#define LOCK_GONE(l)              ((void)0)

void mutex_is_held(const mutex_t *m) NO_LOCK_ANALYSIS
{
    (void)m;
}
#endif

/* --- Mutexes --- */

void mutex_init(mutex_t *m, enum lock_rank rank, const void *owner)
{
    MUST(pthread_mutex_init(&m->pm, NULL));
    LOCK_MADE(m, rank, owner);
}

void mutex_destroy(mutex_t *m)
{
    MUST(pthread_mutex_destroy(&m->pm));
}

void mutex_lock(mutex_t *m) NO_LOCK_ANALYSIS
{
    LOCK_BEFORE(m);
    MUST(pthread_mutex_lock(&m->pm));
    LOCK_AFTER(m, false);
}

/* @ms from now, on the monotonic clock. */
static struct timespec time_in(uint64_t ms)
{
    uint64_t now = now_ns();
    uint64_t end = INT64_MAX; /* some 290 years: for ever */

    if (ms < (end - now) / NS_PER_MS) {
        end = now + ms * NS_PER_MS;
    }
    return (struct timespec){.tv_sec = (time_t)(end / NS_PER_SEC),
                             .tv_nsec = (long)(end % NS_PER_SEC)};
}

/* Has a call with a limit of time got its lock, or its signal, in time? */
static bool in_time(int err)
{
    if (err != 0 && err != ETIMEDOUT) {
        abort();
    }
    return err == 0;
}

/* gcc 12's thread sanitizer does not see that a call with a clock locks. */
#ifdef __SANITIZE_THREAD__
static struct timespec date_in(uint64_t ms)
{
    struct timespec t = time_in(ms);
    struct timespec now;
    uint64_t up = now_ns();

    (void)clock_gettime(CLOCK_REALTIME, &now);
    t.tv_sec += now.tv_sec - (time_t)(up / NS_PER_SEC);
    return t;
}
#define mutex_clocklock(m, end)    pthread_mutex_timedlock(m, end)
#define rwlock_clockwrlock(l, end) pthread_rwlock_timedwrlock(l, end)
#else
#define date_in(ms)             time_in(ms)
#define mutex_clocklock(m, end) pthread_mutex_clocklock(m, CLOCK_MONOTONIC, end)
#define rwlock_clockwrlock(l, end) \
    pthread_rwlock_clockwrlock(l, CLOCK_MONOTONIC, end)
#endif

bool mutex_lock_ms(mutex_t *m, uint64_t ms) NO_LOCK_ANALYSIS
{
    struct timespec end = date_in(ms);

    LOCK_BEFORE(m);
    if (!in_time(mutex_clocklock(&m->pm, &end))) {
        return false;
    }
    LOCK_AFTER(m, false);
    return true;
}

/* How often mutex_trylock() tries, and how long it waits in between. */
#define TRIES  50
#define PAUSES 10

static void pause_briefly(void)
{
    for (unsigned i = 0; i < PAUSES; i++) {
#if defined(__x86_64__) || defined(__i386__)
        __builtin_ia32_pause();
#else
        atomic_signal_fence(memory_order_seq_cst);
#endif
    }
}

bool mutex_trylock(mutex_t *m) NO_LOCK_ANALYSIS
{
    int err = EBUSY;

    for (unsigned i = 0; i < TRIES && err == EBUSY; i++) {
        if (i > 0) {
            pause_briefly();
        }
        err = pthread_mutex_trylock(&m->pm);
    }
    if (err == EBUSY) {
        return false;
    }
    MUST(err);
    LOCK_AFTER(m, false);
    return true;
}

void mutex_unlock(mutex_t *m) NO_LOCK_ANALYSIS
{
    LOCK_GONE(m);
    MUST(pthread_mutex_unlock(&m->pm));
}

/* --- Locks for readers and writers --- */

void rwlock_init(rwlock_t *l, enum lock_rank rank, const void *owner)
{
    pthread_rwlockattr_t attr;

    /* The plain PREFER_WRITER kind of glibc prefers readers. */
    MUST(pthread_rwlockattr_init(&attr));
    MUST(pthread_rwlockattr_setkind_np(
        &attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP));
    MUST(pthread_rwlock_init(&l->prw, &attr));
    MUST(pthread_rwlockattr_destroy(&attr));
    LOCK_MADE(l, rank, owner);
}

void rwlock_destroy(rwlock_t *l)
{
    MUST(pthread_rwlock_destroy(&l->prw));
}

void rwlock_rdlock(rwlock_t *l) NO_LOCK_ANALYSIS
{
    LOCK_BEFORE(l);
    MUST(pthread_rwlock_rdlock(&l->prw));
    LOCK_AFTER(l, true);
}

bool rwlock_tryrdlock(rwlock_t *l) NO_LOCK_ANALYSIS
{
    int err = pthread_rwlock_tryrdlock(&l->prw);

    if (err == EBUSY) {
        return false;
    }
    MUST(err);
    LOCK_AFTER(l, true);
    return true;
}

/*
 * With a time limit that is never reached.  Deadlock detectors derive an order
 * of locks from plain locking.  Trees have no order: the holder of the control
 * lock takes them in any.
 */
void rwlock_wrlock(rwlock_t *l) NO_LOCK_ANALYSIS
{
    struct timespec never = {.tv_sec = (time_t)1 << 40};

    LOCK_BEFORE(l);
    MUST(pthread_rwlock_timedwrlock(&l->prw, &never));
    LOCK_AFTER(l, false);
}

bool rwlock_wrlock_ms(rwlock_t *l, uint64_t ms) NO_LOCK_ANALYSIS
{
    struct timespec end = date_in(ms);

    LOCK_BEFORE(l);
    if (!in_time(rwlock_clockwrlock(&l->prw, &end))) {
        return false;
    }
    LOCK_AFTER(l, false);
    return true;
}

void rwlock_unlock(rwlock_t *l) NO_LOCK_ANALYSIS
{
    LOCK_GONE(l);
    MUST(pthread_rwlock_unlock(&l->prw));
}

/* --- Conditions --- */

void cond_init(cond_t *c)
{
    pthread_condattr_t attr;

    MUST(pthread_condattr_init(&attr));
    MUST(pthread_condattr_setclock(&attr, CLOCK_MONOTONIC));
    MUST(pthread_cond_init(&c->pc, &attr));
    MUST(pthread_condattr_destroy(&attr));
}

void cond_destroy(cond_t *c)
{
    MUST(pthread_cond_destroy(&c->pc));
}

void cond_wait(cond_t *c, mutex_t *m)
{
    LOCK_GONE(m);
    LOCK_BEFORE(m);
    MUST(pthread_cond_wait(&c->pc, &m->pm));
    LOCK_AFTER(m, false);
}

bool cond_wait_ms(cond_t *c, mutex_t *m, uint64_t ms)
{
    struct timespec end = time_in(ms);

    LOCK_GONE(m);
    LOCK_BEFORE(m);
    bool woken = in_time(pthread_cond_timedwait(&c->pc, &m->pm, &end));
    LOCK_AFTER(m, false);
    return woken;
}

void cond_signal(cond_t *c)
{
    MUST(pthread_cond_signal(&c->pc));
}

void cond_broadcast(cond_t *c)
{
    MUST(pthread_cond_broadcast(&c->pc));
}

/* --- Threads --- */

int thread_start(pthread_t *t, const char *name, void *(*fn)(void *), void *arg)
{
    /* A fault is raised in the thread that makes it, whatever is blocked.
     * Signals of faults stay unblocked, so that a handler (a sanitizer's) can
     * report them. */
    static const int faults[] = {SIGSEGV, SIGBUS,  SIGFPE,
                                 SIGILL,  SIGTRAP, SIGSYS};
    char shown[16];
    sigset_t block;
    sigset_t old;
    int err;

    MUST(sigfillset(&block));
    for (size_t i = 0; i < sizeof(faults) / sizeof(faults[0]); i++) {
        MUST(sigdelset(&block, faults[i]));
    }
    /* A thread inherits the mask, so it is never without it. */
    MUST(pthread_sigmask(SIG_SETMASK, &block, &old));
    err = pthread_create(t, NULL, fn, arg);
    MUST(pthread_sigmask(SIG_SETMASK, &old, NULL));
    if (err == 0) {
        (void)snprintf(shown, sizeof(shown), "%s", name);
        (void)pthread_setname_np(*t, shown);
    }
    return -err;
}

void thread_join(pthread_t t)
{
    MUST(pthread_join(t, NULL));
}

/* What this thread calls when it waits. */
static _Thread_local struct {
    void (*fn)(void *opaque, bool waits);
    void *opaque;
    unsigned depth;
} on_wait;

void thread_on_wait(void (*fn)(void *opaque, bool waits), void *opaque)
{
    on_wait.fn = fn;
    on_wait.opaque = opaque;
}

void thread_wait_begin(void)
{
    if (on_wait.depth++ == 0 && on_wait.fn) {
        on_wait.fn(on_wait.opaque, true);
    }
}

void thread_wait_end(void)
{
    if (--on_wait.depth == 0 && on_wait.fn) {
        on_wait.fn(on_wait.opaque, false);
    }
}

uint64_t now_ns(void)
{
    struct timespec ts;

    MUST(clock_gettime(CLOCK_MONOTONIC, &ts));
    return (uint64_t)ts.tv_sec * NS_PER_SEC + (uint64_t)ts.tv_nsec;
}
