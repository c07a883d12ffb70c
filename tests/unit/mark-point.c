// SPDX-License-Identifier: BSD-3-Clause
/*
 * Where a test is.
 *
 * libcheck writes the place of each assertion that holds to a file, at once:
 * 1.3 million writes in test-qcow2, and most of its time.  Its parent reads
 * the last one only, and only when the test dies.  So the place stays in
 * memory here (the linker's --wrap has assertions come here), and a signal
 * that ends the test has it written.
 */
#include <check.h>
#include <signal.h>
#include <stddef.h>
#include <stdlib.h>

// NOLINTBEGIN(*-reserved-identifier): the linker's and libcheck's names
void __real__mark_point(const char *file, int line);
void __wrap__mark_point(const char *file, int line);

/* Of the thread that gets the signal. */
static _Thread_local const char *at_file;
static _Thread_local int at_line;

static void tell(int signal)
{
    if (at_file) {
        __real__mark_point(at_file, at_line);
    }
    (void)raise(signal); /* SA_RESETHAND: this time it ends the process */
}

/* What a sanitizer does with a signal comes first. */
__attribute__((constructor)) static void listen_to_signals(void)
{
    static const int deadly[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT};

    for (size_t i = 0; i < sizeof(deadly) / sizeof(deadly[0]); i++) {
        struct sigaction is;
        struct sigaction told = {.sa_handler = tell,
                                 .sa_flags = SA_RESETHAND | SA_NODEFER};
        if (!sigaction(deadly[i], NULL, &is) && is.sa_handler == SIG_DFL) {
            (void)sigaction(deadly[i], &told, NULL);
        }
    }
}

void __wrap__mark_point(const char *file, int line)
{
    at_file = file;
    at_line = line;
}
// NOLINTEND(*-reserved-identifier)
