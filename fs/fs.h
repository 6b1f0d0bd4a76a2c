/* What one mount consists of. Made by main, borrowed by every operation (fuse_req_userdata). */
#ifndef FS_FS_H
#define FS_FS_H

#include <stdatomic.h>
#include <sys/types.h>
#include <time.h>

#include "fs/callers.h"
#include "fs/events.h"
#include "fs/handle.h"
#include "fs/job_numbers.h"
#include "fs/page_cache.h"
#include "fs/passthrough.h"
#include "fs/scratch.h"
#include "fs/sources.h"
#include "fs/veil.h"
#include "store/store.h"

struct fs {
	struct store *store;
	struct events *events;
	struct callers *callers;
	struct veil *veil;
	struct scratch *scratch;
	struct sources *sources;
	struct handles *handles;
	struct page_cache *page_cache;
	struct passthrough *passthrough;
	struct job_numbers *job_numbers;
	char *mount_dir;
	uid_t uid; /* the store directory's owner: who may clone */
	gid_t gid;
	struct timespec started;
	atomic_llong changed; /* when a VM last came or went by an operation, seconds */
};

#endif
