#include "base/name.h"

#include <errno.h>
#include <stdint.h>
#include <string.h>

#include "base/mem.h"

/* Length of the UTF-8 sequence at P (RFC 3629), 0 where it isn't one. */
static size_t utf8_len(const unsigned char *p)
{
	if (p[0] < 0x80)
		return 1;
	size_t n = p[0] >= 0xc2 && p[0] < 0xe0 ? 2 : p[0] >= 0xe0 && p[0] < 0xf0 ? 3 : p[0] >= 0xf0 && p[0] < 0xf5 ? 4 : 0;
	uint32_t cp = p[0] & (0xff >> (n + 1));
	for (size_t i = 1; i < n; i++) {
		if ((p[i] & 0xc0) != 0x80)
			return 0;
		cp = cp << 6 | (p[i] & 0x3f);
	}
	if ((n == 3 && (cp < 0x800 || (cp >= 0xd800 && cp < 0xe000))) || (n == 4 && (cp < 0x10000 || cp > 0x10ffff)))
		return 0;
	return n;
}

/* Length of the acceptable character at P, 0 where a name can't have it. */
static size_t char_len(const unsigned char *p)
{
	size_t n = utf8_len(p);
	if (n == 1 && (*p < 0x20 || *p == 0x7f || *p == '/'))
		return 0;
	if (n == 2 && p[0] == 0xc2 && p[1] < 0xa0)
		return 0; /* the C1 control characters */
	return n;
}

int name_check(const char *name)
{
	if (!*name || *name == '.')
		return -EINVAL;
	size_t len = strlen(name);
	if (len > 255)
		return -ENAMETOOLONG;
	for (const unsigned char *p = (const unsigned char *)name; *p;) {
		size_t n = char_len(p);
		if (!n)
			return -EINVAL;
		p += n;
	}
	return 0;
}

char *name_make_valid(const char *name)
{
	char *made = strndup(*name ? name : "_", 255);
	if (!made)
		return NULL;
	if (*made == '.')
		*made = '_';
	for (unsigned char *p = (unsigned char *)made; *p;) {
		size_t n = char_len(p);
		if (!n)
			*p = '_';
		p += n ? n : 1;
	}
	return made;
}

/* U+061C, U+200B-200F, U+2028-202E, U+2060-206F, U+FEFF: separators, and marks that aren't seen but change the order of what is. */
static bool is_deceptive(const unsigned char *p, size_t n)
{
	if (n == 2)
		return p[0] == 0xd8 && p[1] == 0x9c;
	if (n != 3)
		return false;
	unsigned cp = (p[0] & 0xfu) << 12 | (p[1] & 0x3fu) << 6 | (p[2] & 0x3fu);
	return (cp >= 0x200b && cp <= 0x200f) || (cp >= 0x2028 && cp <= 0x202e) || (cp >= 0x2060 && cp <= 0x206f) || cp == 0xfeff;
}

void name_make_printable(char *text)
{
	for (unsigned char *p = (unsigned char *)text; *p;) {
		size_t n = *p == '/' ? 1 : char_len(p);
		if (!n || is_deceptive(p, n))
			memset(p, n ? '?' : ' ', n ? n : 1);
		p += n ? n : 1;
	}
}

char *name_final(const char *name)
{
	size_t len = strlen(name);
	bool is_temporary = len > 8 && name[0] == '.' && name[len - 7] == '.';
	return is_temporary ? strndup(name + 1, len - 8) : strdup(name);
}
