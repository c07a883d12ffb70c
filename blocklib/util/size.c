/* SPDX-License-Identifier: BSD-3-Clause */
/* Sizes as people write and read them: see size.h. */
#include "nbdelta/size.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

/* The n-th letter stands for 1024 to the n. */
static const char suffixes[] = "BKMGTPE";

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static int hex_value(char c)
{
    if (is_digit(c)) {
        return c - '0';
    }
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static int parse_hex(const char *p, uint64_t *bytes)
{
    uint64_t n = 0;
    bool too_big = false;

    if (*p == '\0') {
        return -EINVAL;
    }
    for (; *p; p++) {
        int digit = hex_value(*p);

        if (digit < 0) {
            return -EINVAL;
        }
        too_big = too_big || n > (uint64_t)INT64_MAX >> 4;
        n = n << 4 | (unsigned)digit;
    }
    if (too_big) {
        return -ERANGE;
    }
    *bytes = n;
    return 0;
}

/* The power of two that a suffix and the end of the text stand for, or -1. */
static int suffix_shift(const char *p)
{
    const char *s;
    char c = *p;

    if (c == '\0') {
        return 0;
    }
    bool has_unit = c != 'b' && c != 'B' && strcmp(p + 1, "iB") == 0;
    if (p[1] != '\0' && !has_unit) {
        return -1;
    }
    if (c >= 'a' && c <= 'z') {
        c = (char)(c - 'a' + 'A');
    }
    s = strchr(suffixes, c);
    return s ? 10 * (int)(s - suffixes) : -1;
}

int size_parse(const char *text, uint64_t *bytes)
{
    const char *p = text;
    uint64_t whole = 0;
    uint64_t frac = 0;
    uint64_t frac_div = 1;
    bool too_big = false;
    unsigned __int128 n;
    int shift;

    if (p[0] == '0' && (p[1] | 0x20) == 'x') {
        return parse_hex(p + 2, bytes);
    }
    if (!is_digit(*p) && !(*p == '.' && is_digit(p[1]))) {
        return -EINVAL;
    }
    for (; is_digit(*p); p++) {
        too_big = too_big || whole > (uint64_t)INT64_MAX / 10;
        whole = whole * 10 + (unsigned)(*p - '0');
    }
    if (*p == '.') {
        for (p++; is_digit(*p); p++) {
            /* Later digits are less than a byte of an exbibyte. */
            if (frac_div < UINT64_C(1000000000000000000)) {
                frac = frac * 10 + (unsigned)(*p - '0');
                frac_div *= 10;
            }
        }
    }
    shift = suffix_shift(p);
    if (shift < 0 || (shift == 0 && frac != 0)) {
        return -EINVAL;
    }
    n = (unsigned __int128)whole << shift;
    n += ((unsigned __int128)frac << shift) / frac_div;
    if (too_big || n > INT64_MAX) {
        return -ERANGE;
    }
    *bytes = (uint64_t)n;
    return 0;
}

const char *size_human(uint64_t bytes, char *buf, size_t len)
{
    unsigned unit = 0;
    unsigned digits = 0; /* after the point */
    unsigned scale = 1;
    uint64_t n = bytes;

    while (unit < sizeof(suffixes) - 2 && bytes >> (10 * unit) >= 1024) {
        unit++;
    }
    /* Three digits, rounded; 1023.9 of a unit is 1 of the next unit. */
    if (unit > 0) {
        uint64_t whole = bytes >> (10 * unit);

        digits = whole < 10 ? 2 : whole < 100 ? 1 : 0;
        scale = digits == 2 ? 100 : digits == 1 ? 10 : 1;
        n = (uint64_t)(((unsigned __int128)bytes * scale +
                        (UINT64_C(1) << (10 * unit - 1))) >>
                       (10 * unit));
        if (n == 1024 * (uint64_t)scale && unit < sizeof(suffixes) - 2) {
            n = 1;
            scale = 1;
            digits = 0;
            unit++;
        }
        while (digits > 0 && n % 10 == 0) {
            n /= 10;
            scale /= 10;
            digits--;
        }
    }
    if (unit == 0) {
        (void)snprintf(buf, len, "%llu B", (unsigned long long)n);
    } else if (digits == 0) {
        (void)snprintf(buf, len, "%llu %ciB", (unsigned long long)n,
                       suffixes[unit]);
    } else {
        (void)snprintf(buf, len, "%llu.%0*llu %ciB",
                       (unsigned long long)(n / scale), (int)digits,
                       (unsigned long long)(n % scale), suffixes[unit]);
    }
    return buf;
}
