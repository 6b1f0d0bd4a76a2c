/* Stands in for clones in full until they are there. */
#include <errno.h>

#include "store/store.h"

__attribute__((weak)) int store_clone_volume(struct store *store, struct vm *from, const struct vm_snapshot *snapshot, const struct disk_spec *spec,
					     uid_t uid, gid_t gid, struct reason *why)
{
	(void)store, (void)from, (void)snapshot, (void)spec, (void)uid, (void)gid;
	return reason_set(why, -EOPNOTSUPP, "not yet");
}
