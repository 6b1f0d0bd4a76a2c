#include "meta/xml_scan.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <strings.h>

#define DECLARATION_MAX 512 /* characters in which its end must come */
#define OTHER		0x1a /* for a character that isn't ASCII: no markup */

/* The text as characters: of one byte, or of two. */
struct scan {
	const unsigned char *bytes;
	size_t nr_chars, width;
	bool is_little;
	size_t at;
};

static unsigned char char_at(const struct scan *scan, size_t i)
{
	if (i >= scan->nr_chars)
		return 0;
	if (scan->width == 1)
		return scan->bytes[i];
	const unsigned char *pair = scan->bytes + 2 * i;
	return pair[scan->is_little] ? OTHER : pair[!scan->is_little];
}

static bool starts_with(const struct scan *scan, size_t at, const char *word)
{
	size_t i = 0;
	while (word[i] && char_at(scan, at + i) == (unsigned char)word[i])
		i++;
	return !word[i];
}

/* As XML, appendix F: by a byte order mark, or by what must come first. */
static void detect_width(struct scan *scan, const unsigned char *bytes, size_t len)
{
	bool has_pair = len >= 4;
	bool little = has_pair && ((bytes[0] == 0xff && bytes[1] == 0xfe) || (bytes[0] == '<' && !bytes[1]));
	bool big = has_pair && ((bytes[0] == 0xfe && bytes[1] == 0xff) || (!bytes[0] && bytes[1] == '<'));
	*scan = (struct scan){.bytes = bytes, .nr_chars = little || big ? len / 2 : len, .width = little || big ? 2 : 1, .is_little = little};
	if (scan->width == 2 && bytes[0] >= 0xfe)
		scan->at = 1;
	else if (len >= 3 && !memcmp(bytes, "\xef\xbb\xbf", 3))
		scan->at = 3;
}

/* No character of XML is 0; and text of four bytes for each, which isn't read, would pass for text of one. */
static bool has_nul(const struct scan *scan)
{
	size_t i = 0;
	if (scan->width == 1)
		return memchr(scan->bytes, 0, scan->nr_chars);
	while (i < scan->nr_chars && (scan->bytes[2 * i] || scan->bytes[2 * i + 1]))
		i++;
	return i < scan->nr_chars;
}

static bool is_read(const struct scan *scan, const char *encoding)
{
	static const char *const wide[] = {"UTF-16", "UTF-16LE", "UTF-16BE"};
	static const char *const narrow[] = {"UTF-8", "UTF8", "ASCII", "US-ASCII"};
	for (size_t i = 0; scan->width == 2 && i < sizeof wide / sizeof *wide; i++)
		if (strcasecmp(encoding, wide[i]) == 0)
			return true;
	for (size_t i = 0; scan->width == 1 && i < sizeof narrow / sizeof *narrow; i++)
		if (strcasecmp(encoding, narrow[i]) == 0)
			return true;
	return scan->width == 1 && (strncasecmp(encoding, "ISO-8859-", 9) == 0 || strncasecmp(encoding, "windows-125", 11) == 0);
}

static bool is_blank(unsigned char c)
{
	return c == ' ' || c == '\t' || c == '\r' || c == '\n';
}

/* <?xml version='1.0' encoding='NAME'?> */
static int check_encoding(struct scan *scan, struct reason *why)
{
	char text[DECLARATION_MAX];
	size_t len = 0;
	if (char_at(scan, scan->at) == 0x4c && char_at(scan, scan->at + 1) == 0x6f)
		return reason_set(why, -EINVAL, "line 1: EBCDIC isn't read: write UTF-8");
	if (!starts_with(scan, scan->at, "<?xml") || !is_blank(char_at(scan, scan->at + strlen("<?xml"))))
		return 0; /* <?xml-stylesheet?> is something else */
	while (len < sizeof text - 1 && scan->at + len < scan->nr_chars && !starts_with(scan, scan->at + len, "?>")) {
		unsigned char c = char_at(scan, scan->at + len);
		text[len++] = c ? (char)c : OTHER;
	}
	text[len] = '\0';
	if (len == sizeof text - 1)
		return reason_set(why, -EINVAL, "line 1: the XML declaration doesn't end");
	char *name = strstr(text, "encoding");
	if (!name)
		return 0;
	name += strlen("encoding");
	name += strspn(name, " \t\r\n=");
	size_t quoted = *name == '"' || *name == '\'';
	name[quoted + strcspn(name + quoted, "\"'")] = '\0';
	return is_read(scan, name + quoted) ? 0 : reason_set(why, -EINVAL, "line 1: the encoding %.40s isn't read: write UTF-8", name + quoted);
}

/* To behind END, or to the end of all. */
static void skip_to(struct scan *scan, const char *end)
{
	while (scan->at < scan->nr_chars && !starts_with(scan, scan->at, end))
		scan->at++;
	scan->at += strlen(end);
}

static size_t line_of(const struct scan *scan)
{
	size_t line = 1;
	for (size_t i = 0; i < scan->at; i++)
		line += char_at(scan, i) == '\n';
	return line;
}

/* To the next "<", or to the end. */
static void skip_text(struct scan *scan)
{
	if (scan->width == 1) {
		const unsigned char *next = memchr(scan->bytes + scan->at, '<', scan->nr_chars - scan->at);
		scan->at = next ? (size_t)(next - scan->bytes) : scan->nr_chars;
	}
	while (scan->at < scan->nr_chars && char_at(scan, scan->at) != '<')
		scan->at++;
}

/* A tag, from behind its "<" to behind its ">". */
static int scan_tag(struct scan *scan, struct reason *why)
{
	unsigned nr_attributes = 0;
	unsigned char quote = 0;
	for (; scan->at < scan->nr_chars; scan->at++) {
		unsigned char c = char_at(scan, scan->at);
		if (quote)
			quote = c == quote ? 0 : quote;
		else if (c == '"' || c == '\'')
			quote = c;
		else if (c == '=' && ++nr_attributes > XML_ATTRIBUTES_MAX)
			return reason_set(why, -EINVAL, "line %zu: an element with more than %u attributes", line_of(scan), XML_ATTRIBUTES_MAX);
		else if (c == '>')
			break;
	}
	scan->at++;
	return 0;
}

int xml_scan(const char *text, size_t len, struct reason *why)
{
	struct scan scan;
	detect_width(&scan, (const unsigned char *)text, len);
	if (has_nul(&scan))
		return reason_set(why, -EINVAL, "line 1: NUL characters, or an encoding that isn't read: write UTF-8");
	int err = check_encoding(&scan, why);
	while (!err && scan.at < scan.nr_chars) {
		if (char_at(&scan, scan.at) != '<')
			skip_text(&scan);
		else if (starts_with(&scan, scan.at, "<!--"))
			skip_to(&scan, "-->");
		else if (starts_with(&scan, scan.at, "<![CDATA["))
			skip_to(&scan, "]]>");
		else if (starts_with(&scan, scan.at, "<?"))
			skip_to(&scan, "?>");
		else
			err = scan_tag(&scan, why);
	}
	return err;
}
