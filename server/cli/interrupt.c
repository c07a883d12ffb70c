/* SPDX-License-Identifier: BSD-3-Clause */
/* A thread that waits for signals: see interrupt.h. */
#include "cli/interrupt.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "nbdelta/error.h"
#include "nbdelta/kick.h"
#include "nbdelta/thread.h"
#include "process.h"

static struct {
    pthread_t thread;
    int signals; /* a signalfd */
    int stop;    /* a kick: the first has come */
    int end;     /* a kick: of interrupt_end */
    _Atomic pid_t child;
    _Atomic bool stopping;
} self;

/* As the signal does where nobody has blocked it. */
static void die(int signo)
{
    pid_t child = atomic_load(&self.child);
    sigset_t set;

    if (child > 0) {
        (void)kill(-child, SIGKILL);
    }
    (void)signal(signo, SIG_DFL);
    (void)sigemptyset(&set);
    (void)sigaddset(&set, signo);
    (void)pthread_sigmask(SIG_UNBLOCK, &set, NULL);
    (void)raise(signo);
    _exit(128 + signo);
}

static void *wait_for_signals(void *opaque)
{
    struct pollfd p[2] = {{.fd = self.signals, .events = POLLIN},
                          {.fd = self.end, .events = POLLIN}};

    (void)opaque;
    while (!p[1].revents) {
        struct signalfd_siginfo info;

        (void)poll(p, 2, -1);
        if (p[0].revents && read(self.signals, &info, sizeof(info)) > 0) {
            if (atomic_exchange(&self.stopping, true)) {
                die((int)info.ssi_signo);
            }
            kick_raise(self.stop);
        }
    }
    return NULL;
}

int interrupt_start(int *stop_fd, struct error **errp)
{
    sigset_t set;

    process_take_signals(&set);
    self.signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    self.stop = kick_new();
    self.end = kick_new();
    int r = self.signals < 0 || self.stop < 0 || self.end < 0
                ? -EMFILE
                : thread_start(&self.thread, "signals", wait_for_signals, NULL);
    *stop_fd = self.stop;
    return r < 0 ? error_set(errp, -r, "cannot wait for signals: %s",
                             strerror(-r))
                 : 0;
}

const _Atomic bool *interrupt_flag(void)
{
    return &self.stopping;
}

void interrupt_end(void)
{
    kick_raise(self.end);
    thread_join(self.thread);
    (void)close(self.signals);
    (void)close(self.stop);
    (void)close(self.end);
}

void interrupt_with(pid_t child)
{
    atomic_store(&self.child, child);
}
