/* Exchanges two names, again and again, until it is told to end: swapper A B [A B...]. Prints how often at the end (SIGTERM). What the
 * race of an attacker looks like who owns the directory. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static volatile sig_atomic_t ended;

static void end(int signal)
{
	(void)signal;
	ended = 1;
}

int main(int argc, char **argv)
{
	unsigned long nr = 0;
	if (argc < 3 || argc % 2 == 0) {
		fprintf(stderr, "usage: swapper A B [A B...]\n");
		return 2;
	}
	signal(SIGTERM, end);
	while (!ended) {
		for (int i = 1; i + 1 < argc; i += 2)
			if (renameat2(AT_FDCWD, argv[i], AT_FDCWD, argv[i + 1], RENAME_EXCHANGE) < 0) {
				fprintf(stderr, "swapper: %s, %s: %s\n", argv[i], argv[i + 1], strerror(errno));
				return 1;
			}
		if (++nr % 64 == 0)
			usleep(nr % 4096 ? 0 : 2000);
	}
	printf("%lu\n", nr);
	return 0;
}
