/* What the targets of texts share. */
#ifndef FUZZ_WORDS_H
#define FUZZ_WORDS_H

#include <string.h>

#include "fuzz.h"
#include "meta/xml.h"

/* For one text of 64 KiB at most, and all that is made of it. */
#define WORDS_MEMORY_MAX (48u << 20)

/* The text, and behind a NUL further strings: what a user says besides. */
struct words {
	char *all; /* to be freed */
	const char *text;
	size_t len;
	const char *more[3]; /* "" where nothing is left */
};

static inline struct words words_of(const uint8_t *data, size_t size)
{
	struct words words = {.all = fuzz_text(data, size)};
	char *pos = words.all, *end = words.all + size;
	words.text = pos;
	words.len = strlen(pos);
	for (unsigned i = 0; i < 3; i++) {
		pos += strlen(pos);
		words.more[i] = pos < end ? ++pos : end;
	}
	return words;
}

static inline bool same_text(const char *a, const char *b)
{
	return a && b ? strcmp(a, b) == 0 : a == b;
}

/* White space apart: it was indented anew. */
static inline bool same_words(const char *a, const char *b)
{
	static const char blanks[] = " \t\r\n";
	if (!a || !b)
		return a == b;
	for (;;) {
		a += strspn(a, blanks);
		b += strspn(b, blanks);
		if (*a != *b || !*a)
			return *a == *b;
		a++;
		b++;
	}
}

/* What was made by us is XML, and prints as it is. */
static inline void check_xml(const char *text)
{
	xmlDocPtr doc = NULL;
	char *again = NULL;
	struct reason why = {""};
	if (xml_parse(text, strlen(text), &doc, &why) != 0)
		fuzz_fail("not XML (%s): %s", why.text, text);
	FUZZ_CHECK(xml_print(doc, xmlDocGetRootElement(doc), &again) == 0);
	free(again);
	xmlFreeDoc(doc);
}

#endif
