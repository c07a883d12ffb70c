/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef NBDELTA_TEXT_H
#define NBDELTA_TEXT_H

/*
 * Text from elsewhere
 * ===================
 *
 * Names and sentences from images, clients and servers are bytes that
 * somebody else has chosen.  These functions replace the characters that could
 * do more, on a terminal or in a log, than be read:
 *
 *   C0 and C1 controls, DEL     begin a terminal's command, or a new line
 *   bidirectional controls      show text in another order than it has
 *   line separators, tags       are lines, or are not seen at all
 *   what is not UTF-8           is a C1 control to a terminal in Latin-1
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The length of the identifier that @s begins with: an ASCII letter, then
 * letters, digits, '-', '.' and '_'.  0: @s begins with none. */
size_t text_id_length(const char *s);

/* Is all of @s an identifier? */
bool text_is_id(const char *s);

/* The length in bytes of the character that @s begins with; *code gets the
 * character.  0: @s does not begin with a character in UTF-8 (the shortest
 * form, no surrogates, at most U+10FFFF).  The NUL byte at the end of @s is a
 * character. */
size_t text_char(const char *s, uint32_t *code);

/* False: @code is one of the characters in the table above. */
bool text_is_plain(uint32_t code);

/* Replace each character that is not plain, and each byte that is not UTF-8, by
 * '?'.  @s does not grow. */
void text_make_printable(char *s);

/* A copy of @s, made printable.  Free the result; NULL: no memory. */
char *text_printable(const char *s);

/* A copy of @s, with U+FFFD for each byte that is not UTF-8.  Free the result;
 * NULL: no memory. */
char *text_as_utf8(const char *s);

#endif /* NBDELTA_TEXT_H */
