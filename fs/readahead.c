#include "fs/readahead.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/strbuf.h"

#define READAHEAD_KIB "1024" /* as large as a request can be */

/* MOUNT_DIR as /proc/self/mountinfo writes it (proc(5)): blanks and backslashes in octal. */
static void escape(const char *dir, struct strbuf *ret)
{
	for (; *dir; dir++) {
		if (strchr(" \t\n\\", *dir))
			strbuf_addf(ret, "\\%03o", (unsigned char)*dir);
		else
			strbuf_add(ret, dir, 1);
	}
}

/* The device number of the mount: stat(2) would ask ourselves. */
static bool find_device(const char *mount_dir, char *ret, size_t ret_len)
{
	struct strbuf want = {0};
	auto_free char *line = NULL;
	size_t cap = 0;
	bool found = false;
	FILE *mounts = fopen("/proc/self/mountinfo", "re");
	escape(mount_dir, &want);
	while (mounts && want.text && getline(&line, &cap, mounts) >= 0) {
		char device[32], *dir = NULL;
		if (sscanf(line, "%*u %*u %31s %*s %ms", device, &dir) == 2 && strcmp(dir, want.text) == 0)
			found = snprintf(ret, ret_len, "%s", device) > 0; /* the last one covers the others */
		free(dir);
	}
	if (mounts)
		fclose(mounts);
	strbuf_done(&want);
	return found;
}

void readahead_raise(const char *mount_dir)
{
	char device[32], path[80];
	if (!find_device(mount_dir, device, sizeof device))
		return;
	snprintf(path, sizeof path, "/sys/class/bdi/%s/read_ahead_kb", device);
	auto_close int fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd >= 0 && write(fd, READAHEAD_KIB, strlen(READAHEAD_KIB)) < 0)
		return; /* only slower */
}
