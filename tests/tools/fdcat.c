/* Writes out what is behind a descriptor, from its beginning, wherever it stands: fdcat FD. On an error: its message, and exit 1. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	static char buf[1 << 17];
	int fd = argc == 2 ? atoi(argv[1]) : -1;
	ssize_t n;

	for (off_t off = 0; (n = pread(fd, buf, sizeof buf, off)) > 0; off += n)
		if (fwrite(buf, 1, (size_t)n, stdout) != (size_t)n)
			return 1;
	if (n < 0)
		fprintf(stderr, "fdcat: %s\n", strerror(errno));
	return n < 0 || fflush(stdout) ? 1 : 0;
}
