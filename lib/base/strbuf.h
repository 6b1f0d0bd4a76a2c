/* Text that grows. After a failed allocation further additions do nothing and strbuf_take says -ENOMEM. */
#ifndef BASE_STRBUF_H
#define BASE_STRBUF_H

#include <stdbool.h>
#include <stddef.h>

struct strbuf {
	char *text; /* NUL-terminated, or NULL while empty */
	size_t len;
	size_t cap;
	bool failed;
};

void strbuf_add(struct strbuf *b, const char *text, size_t len);
void strbuf_addf(struct strbuf *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Adds TEXT, the content of an element, with & < > ' " written as XML entities. */
void strbuf_add_xml(struct strbuf *b, const char *text);

/* The same for text that must come back byte for byte, from an attribute too: a parser would turn CR, and in attributes TAB and LF, into something
 * else. */
void strbuf_add_xml_exact(struct strbuf *b, const char *text);

void strbuf_done(struct strbuf *b);

/* Hands the text over (never NULL on success); the buffer is empty afterwards. */
int strbuf_take(struct strbuf *b, char **ret_text, size_t *ret_len);

#endif
