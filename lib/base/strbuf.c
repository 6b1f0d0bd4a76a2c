#include "base/strbuf.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

static bool strbuf_reserve(struct strbuf *b, size_t more)
{
	if (b->failed || mem_grow(&b->text, &b->cap, b->len + more + 1, 1) < 0)
		b->failed = true;
	return !b->failed;
}

void strbuf_add(struct strbuf *b, const char *text, size_t len)
{
	if (!strbuf_reserve(b, len))
		return;
	memcpy(b->text + b->len, text, len);
	b->len += len;
	b->text[b->len] = '\0';
}

void strbuf_addf(struct strbuf *b, const char *fmt, ...)
{
	va_list ap;
	va_start(ap, fmt);
	char *text = NULL;
	int n = vasprintf(&text, fmt, ap);
	va_end(ap);
	if (n < 0) {
		b->failed = true;
		return;
	}
	strbuf_add(b, text, (size_t)n);
	free(text);
}

void strbuf_add_xml(struct strbuf *b, const char *text)
{
	for (const char *p = text; *p; p++) {
		switch (*p) {
		case '&': strbuf_add(b, "&amp;", 5); break;
		case '<': strbuf_add(b, "&lt;", 4); break;
		case '>': strbuf_add(b, "&gt;", 4); break;
		case '"': strbuf_add(b, "&quot;", 6); break;
		case '\'': strbuf_add(b, "&apos;", 6); break;
		case '\r': strbuf_add(b, "&#13;", 5); break;
		default: strbuf_add(b, p, 1);
		}
	}
}

void strbuf_add_xml_exact(struct strbuf *b, const char *text)
{
	for (const char *p = text; *p;) {
		size_t plain = strcspn(p, "&<>\"'\r\n\t");
		strbuf_add(b, p, plain);
		p += plain;
		switch (*p) {
		case '\0': continue;
		case '&': strbuf_addf(b, "&amp;"); break;
		case '<': strbuf_addf(b, "&lt;"); break;
		case '>': strbuf_addf(b, "&gt;"); break;
		default: strbuf_addf(b, "&#%d;", *p);
		}
		p++;
	}
}

void strbuf_done(struct strbuf *b)
{
	free(b->text);
	*b = (struct strbuf){0};
}

int strbuf_take(struct strbuf *b, char **ret_text, size_t *ret_len)
{
	strbuf_add(b, "", 0);
	if (b->failed) {
		strbuf_done(b);
		return -ENOMEM;
	}
	if (ret_len)
		*ret_len = b->len;
	*ret_text = b->text;
	*b = (struct strbuf){0};
	return 0;
}
