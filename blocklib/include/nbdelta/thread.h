/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_THREAD_H
#define NBDELTA_THREAD_H

/*
 * Locks that the compiler understands
 * ===================================
 *
 * Thin wrappers over pthreads which abort on misuse and which carry
 * clang's thread-safety attributes; `make check-locks` turns a missing
 * lock into a compile error.  What clang 14 can and cannot see in C:
 *
 *  - REQUIRES(x->lock) on a function: checked.
 *  - GUARDED_BY(lock) on a field: only documentation (clang 14 cannot
 *    name a sibling field in C), so we write it and it expands to nothing.
 *  - attribute cleanup: not understood.  Therefore memory and fds are
 *    released by CLEANUP_*, locks never are: take them in a short outer
 *    function, do the work in a foo_locked() that REQUIRES them.
 *
 * Locks are taken in the order of enum lock_rank, which HACKING.md explains.
 * `make LOCKCHECK=1` builds programs that look: each thread has a list of what
 * it holds, and a wrong order, a wait that keeps a lock of later order, and a
 * claim that a lock is held, and is not, end the process.
 */
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#ifdef __clang__
#define TSA(x) __attribute__((x))
#else
#define TSA(x)
#endif

#define REQUIRES(...)        TSA(requires_capability(__VA_ARGS__))
#define REQUIRES_SHARED(...) TSA(requires_shared_capability(__VA_ARGS__))
#define EXCLUDES(...)        TSA(locks_excluded(__VA_ARGS__))
#define ACQUIRES(...)        TSA(acquire_capability(__VA_ARGS__))
#define RELEASES(...)        TSA(release_capability(__VA_ARGS__))
#define NO_LOCK_ANALYSIS     TSA(no_thread_safety_analysis)
#define GUARDED_BY(lock)

/*
 * All kinds of lock, in the order in which they are taken.  Locks of the server
 * come after those of blocklib: so none is held on entry to blocklib.
 */
enum lock_rank {
    LOCK_DISKS,   /* the plugin's: one disk is opened or closed at a time */
    LOCK_COPIER,  /* nbdelta backup: which disks are copied now */
    LOCK_MONITOR, /* struct jobs */
    LOCK_CONTROL, /* struct graph */
    LOCK_TREE,    /* any number of them, by the owner of the control lock */

    /* Locks of nodes that are held while children are used: they have an owner,
     * and are in order only among those of that owner; a parent's come before a
     * child's. */
    LOCK_COPY_CLAIM,
    LOCK_COPY,
    LOCK_LOGWRITES_ORDER,
    LOCK_QCOW2_ARM,
    LOCK_QCOW2_FLUSH,
    LOCK_QCOW2_META,
    LOCK_QCOW2_CACHE,

    LOCK_YANKS,
    LOCK_FLUSHES,
    LOCK_BITMAP,
    LOCK_FOLLOW,
    LOCK_QCOW2_ARM_QUEUE,
    LOCK_QCOW2_TIGHTENER,
    LOCK_QCOW2_UNPACKED,
    LOCK_QCOW2_COPIED,
    LOCK_FILE_FLUSH,
    LOCK_FILE_STATUS,
    LOCK_FILE_UNCACHED,
    LOCK_FILE_SYNC,
    LOCK_SCRATCH_UNIT,
    LOCK_SCRATCH_MEMORY,
    LOCK_SCRATCH_SLOTS,
    LOCK_NBD,
    LOCK_RBD,
    LOCK_RBD_GROW,
    LOCK_FLIGHTS,
    LOCK_BLKDEBUG,
    LOCK_LOGWRITES,
    LOCK_THROTTLE,
    LOCK_MEM,
    LOCK_RANGE,
    LOCK_COPY_POOL,
    LOCK_ERRANDS,
    LOCK_HBITMAP,

    /* The server's. */
    LOCK_STOPPER,
    LOCK_SERVERS,
    LOCK_EXPORTS,
    LOCK_CONN,
    LOCK_POOL,
    LOCK_ROOM,
    LOCK_IO_TASKS,
    LOCK_MONITORS,
    LOCK_SESSION,
    LOCK_TURN,
    LOCK_TLS_KEYS,
    LOCK_TLS_SESSION,
    LOCK_RESTORE,
    LOCK_AUTHZ,
    LOCK_SOCKET_FILES,
    LOCK_SUMS,
    LOCK_COMPARE,
    LOCK_VERIFY,
    LOCK_PROGRESS,
    LOCK_COPY_JOB,

    /* With any lock held. */
    LOCK_TLS_CREDS,
    LOCK_NOTICES,
    LOCK_SECRETS,
    LOCK_FDSETS,
    LOCK_LOG,
    LOCK_TEST, /* of tests */
};

#ifdef LOCKCHECK
struct lock_check {
    enum lock_rank rank;
    const void *owner;
    const void *_Atomic holder; /* a thread, of one that is held for writing */
};
#define LOCK_CHECKED struct lock_check check;
#else
#define LOCK_CHECKED
#endif

typedef struct TSA(capability("mutex")) mutex {
    pthread_mutex_t pm;
    LOCK_CHECKED
} mutex_t;

/* Prefers writers and must not be nested: a reader that waits for a writer
 * that waits for an outer read lock of the same thread never wakes. */
typedef struct TSA(capability("rwlock")) rwlock {
    pthread_rwlock_t prw;
    LOCK_CHECKED
} rwlock_t;

typedef struct cond {
    pthread_cond_t pc;
} cond_t;

/* Of one with static storage: it needs no mutex_init. */
#ifdef LOCKCHECK
#define MUTEX_STATIC(rank)         \
    {                              \
        PTHREAD_MUTEX_INITIALIZER, \
        {                          \
            (rank), NULL, NULL     \
        }                          \
    }
#else
#define MUTEX_STATIC(rank)        \
    {                             \
        PTHREAD_MUTEX_INITIALIZER \
    }
#endif

/* @owner: of locks of nodes; else NULL. */
void mutex_init(mutex_t *m, enum lock_rank rank, const void *owner);
void mutex_destroy(mutex_t *m);
void mutex_lock(mutex_t *m) TSA(acquire_capability(*m));
/* False when @ms milliseconds (monotonic) have passed without it. */
bool mutex_lock_ms(mutex_t *m, uint64_t ms)
    TSA(try_acquire_capability(true, *m));
/* For locks that are held for a moment, as a rule: false when it is not free
 * within some microseconds, in which the thread does not sleep. */
bool mutex_trylock(mutex_t *m) TSA(try_acquire_capability(true, *m));
void mutex_unlock(mutex_t *m) TSA(release_capability(*m));

/* The caller holds it, which clang cannot see through a callback. */
void mutex_is_held(const mutex_t *m) TSA(assert_capability(*m));

void rwlock_init(rwlock_t *l, enum lock_rank rank, const void *owner);
void rwlock_destroy(rwlock_t *l);
void rwlock_rdlock(rwlock_t *l) TSA(acquire_shared_capability(*l));
bool rwlock_tryrdlock(rwlock_t *l) TSA(try_acquire_shared_capability(true, *l));
void rwlock_wrlock(rwlock_t *l) TSA(acquire_capability(*l));
/* As mutex_lock_ms.  New readers wait meanwhile, too. */
bool rwlock_wrlock_ms(rwlock_t *l, uint64_t ms)
    TSA(try_acquire_capability(true, *l));
void rwlock_unlock(rwlock_t *l) TSA(release_generic_capability(*l));

void cond_init(cond_t *c);
void cond_destroy(cond_t *c);
/* Spurious wake-ups happen: call it in a loop over the condition. */
void cond_wait(cond_t *c, mutex_t *m) REQUIRES(*m);
/* As cond_wait; false when @ms milliseconds (monotonic) have passed. */
bool cond_wait_ms(cond_t *c, mutex_t *m, uint64_t ms) REQUIRES(*m);
void cond_signal(cond_t *c);
void cond_broadcast(cond_t *c);

/* Run fn(arg) in a new joinable thread named @name (15 bytes are shown).
 * All signals are blocked in it, except faults that it may raise itself
 * (SIGSEGV...).  Returns 0 or -errno. */
int thread_start(pthread_t *t, const char *name, void *(*fn)(void *),
                 void *arg);
void thread_join(pthread_t t);

/*
 * Call these before and after a wait for another thread that is not I/O.  Then
 * a pool, which counts the threads that work, can use another thread meanwhile;
 * else requests that wait for another request might take all threads.  Any lock
 * may be held; calls nest.  thread_on_wait: @fn is called in this thread at the
 * begin and at the end of such a wait.
 */
void thread_wait_begin(void);
void thread_wait_end(void);
void thread_on_wait(void (*fn)(void *opaque, bool waits), void *opaque);

/* Monotonic clock, nanoseconds. */
uint64_t now_ns(void);

#endif /* NBDELTA_THREAD_H */
