/* SPDX-License-Identifier: BSD-3-Clause */
/* What standard output can show: see terminal.h. */
#include "cli/terminal.h"

#include <langinfo.h>
#include <locale.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define COLUMNS_MIN     20
#define COLUMNS_MAX     500
#define COLUMNS_DEFAULT 80

/* 0: @text is NULL, or no number. */
static unsigned long parse_columns(const char *text)
{
    char *end;

    if (!text || *text < '0' || *text > '9') {
        return 0;
    }
    unsigned long n = strtoul(text, &end, 10); /* ULONG_MAX if it is more */
    return *end == '\0' ? n : 0;
}

unsigned terminal_columns(void)
{
    struct winsize size = {.ws_col = 0};
    unsigned long n = parse_columns(getenv("COLUMNS"));

    if (n == 0 && ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0) {
        n = size.ws_col;
    }
    n = n == 0 ? COLUMNS_DEFAULT : n;
    return n < COLUMNS_MIN   ? COLUMNS_MIN
           : n > COLUMNS_MAX ? COLUMNS_MAX
                             : (unsigned)n;
}

bool terminal_colours(void)
{
    const char *no = getenv("NO_COLOR");
    const char *term = getenv("TERM");

    return isatty(STDOUT_FILENO) && (!no || *no == '\0') &&
           (!term || strcmp(term, "dumb") != 0);
}

/* The locale of the process stays "C": JSON and sizes have points. */
bool terminal_utf8(void)
{
    locale_t l = newlocale(LC_CTYPE_MASK, "", (locale_t)0);

    if (l == (locale_t)0) {
        return false;
    }
    bool utf8 = strcmp(nl_langinfo_l(CODESET, l), "UTF-8") == 0;
    freelocale(l);
    return utf8;
}
