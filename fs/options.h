/* The command line: vmsnapfs [-o OPTION,...] [-f] [-d] SOURCE MOUNTPOINT, and what mount(8) makes of a line in /etc/fstab. */
#ifndef FS_OPTIONS_H
#define FS_OPTIONS_H

#include <fuse_lowlevel.h>
#include <stdbool.h>
#include <stddef.h>

#include "store/store.h"

struct options {
	int foreground, debug, show_help, show_version;
	int read_only, allow_devices, allow_other;
	unsigned max_threads;
	char *index; /* as it was given; NULL: not at all */
	size_t index_bytes;
	char *source; /* directories: absolute and real once options_check() has passed */
	char *mountpoint;
	char *store; /* NULL: not given */
	char *snapshots;
	char **trust;
	size_t nr_trust, cap_trust;
	struct pool_config *pools; /* both strings of each are ours */
	size_t nr_pools, cap_pools;
	bool clone_full;
	struct fuse_args args; /* what is left: for fuse_session_new */
};

/* Parses; complaints go to stderr. -EINVAL, -ENOMEM. */
int options_parse(int argc, char **argv, struct options *ret);

/* Makes the directories real, and refuses a mount point that can't work: in SOURCE or the store, or above them. A dead mount on
 * it (its daemon was killed) is unmounted first. Complaints go to stderr. */
int options_check(struct options *options);

void options_help(void);
void options_done(struct options *options);

/* Where the store is: STORE, or its default in SOURCE. The caller frees; NULL: memory is out. */
char *options_store_dir(const struct options *options);

#endif
