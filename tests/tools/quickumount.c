/* quickumount MOUNTPOINT FILE...: opens each file many times, closes them all, and unmounts in the same moment: the kernel still has
 * requests to send that nobody waits for. */
#include <fcntl.h>
#include <stdio.h>
#include <sys/mount.h>
#include <unistd.h>

#define NR_OPENS 200
#define TRIES	 100000

int main(int argc, char **argv)
{
	int fds[NR_OPENS];

	if (argc < 3) {
		fprintf(stderr, "usage: quickumount MOUNTPOINT FILE...\n");
		return 2;
	}
	for (int i = 0; i < NR_OPENS; i++) {
		const char *path = argv[2 + i % (argc - 2)];

		fds[i] = open(path, O_RDONLY | O_CLOEXEC);
		if (fds[i] < 0) {
			perror(path);
			return 1;
		}
	}
	for (int i = 0; i < NR_OPENS; i++)
		close(fds[i]);
	for (int i = 0; i < TRIES; i++)
		if (umount2(argv[1], 0) == 0)
			return 0;
	perror(argv[1]);
	return 1;
}
