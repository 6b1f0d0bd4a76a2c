#include "base/mounts.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "base/mem.h"

/* The type stands behind the fields that there may be any number of: proc(5). */
static bool is_vmsnapfs(unsigned device_major, unsigned device_minor)
{
	auto_free char *line = NULL;
	size_t cap = 0;
	bool found = false;
	FILE *mounts = fopen("/proc/self/mountinfo", "re");
	while (mounts && !found && getline(&line, &cap, mounts) >= 0) {
		unsigned major_number, minor_number;
		found = sscanf(line, "%*u %*u %u:%u", &major_number, &minor_number) == 2 && major_number == device_major &&
			minor_number == device_minor && strstr(line, " - fuse.vmsnapfs ");
	}
	if (mounts)
		fclose(mounts);
	return found;
}

bool mounts_lies_on(int at, const char *name, dev_t around)
{
	struct statx stx;
	if (statx(at, name, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT | AT_STATX_DONT_SYNC, 0, &stx) < 0)
		return false;
	return makedev(stx.stx_dev_major, stx.stx_dev_minor) != around && is_vmsnapfs(stx.stx_dev_major, stx.stx_dev_minor);
}
