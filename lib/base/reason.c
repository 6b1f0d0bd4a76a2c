#include "base/reason.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

int reason_set(struct reason *why, int err, const char *fmt, ...)
{
	if (why) {
		va_list ap;
		va_start(ap, fmt);
		vsnprintf(why->text, sizeof why->text, fmt, ap);
		va_end(ap);
	}
	return err;
}

int reason_prefix(struct reason *why, int err, const char *fmt, ...)
{
	if (!why)
		return err;
	struct reason tail = *why;
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(why->text, sizeof why->text, fmt, ap);
	va_end(ap);
	size_t used = strlen(why->text);
	snprintf(why->text + used, sizeof why->text - used, "%s", tail.text);
	return err;
}
