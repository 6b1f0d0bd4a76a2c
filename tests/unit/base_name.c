/* Names of anybody's making: which are accepted, and how they are shown in a line of text. */
#include "base/name.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"

static bool shows(const char *text, const char *want)
{
	char copy[300];
	snprintf(copy, sizeof copy, "%s", text);
	name_make_printable(copy);
	if (strcmp(copy, want) != 0)
		printf("shows: %s\n", copy);
	return strcmp(copy, want) == 0;
}

static void test_check(void)
{
	char longest[257];
	memset(longest, 'x', sizeof longest - 1);
	longest[256] = '\0';
	CHECK(name_check(longest) == -ENAMETOOLONG);
	longest[255] = '\0';
	CHECK(name_check(longest) == 0);
	static const char *const bad[] = {"", ".", "..", ".x", "a/b", "a\nb", "a\x1b[31m", "a\x7f", ("\xc2\x9b" "31m"), "\xff", "\xc0\xaf", "\xed\xa0\x80", "\xf4\x90\x80\x80", "a\xc3"};
	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
		CHECK(name_check(bad[i]) == -EINVAL);
	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
		char *made = name_make_valid(bad[i]);
		CHECK(made && name_check(made) == 0);
		free(made);
	}
	CHECK(name_check("-rf") == 0 && name_check("Büro 東京") == 0);
}

int main(void)
{
	test_check();
	CHECK(shows("Büro/東京: 😀", "Büro/東京: 😀"));
	CHECK(shows("a\nb\tc\x1b[2J\x7f", "a b c [2J "));
	CHECK(shows("\xc2\x9b" "2J", "  2J")); /* a C1 control character begins an escape sequence as well */
	CHECK(shows("a\xff\xc3", "a  "));
	CHECK(shows("x\xe2\x80\xae" "gpj.exe", "x???gpj.exe"));
	CHECK(shows("\xe2\x81\xa6" "a\xe2\x80\xa9" "b\xe2\x80\x8f\xd8\x9c", "???a???b?????"));
	return 0;
}
