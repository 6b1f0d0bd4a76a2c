/* limit: 300 nightly: 1800
 * What is read from the store's own files, should somebody else have written there. Byte 0 says which: a vm.xml, which is refused or comes back from being saved
 * with the same meaning; or the ledger entry of a pool's file, which never makes us touch a file that wasn't made here. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/texts.h"
#include "common/words.h"
#include "store/manifest.h"
#include "store/pools.h"
#include "store/store_internal.h"

#define UUID	"6ba7b810-9dad-41d1-80b4-00c04fd430c8"
#define VM_DIR	"source/.vmsnapfs/vms/" UUID
#define VOLUME	"mine.raw"
#define PART	".vmsnapfs-7b2f8c1e-5d07-4c0e-9b0a-0d7a6c9d1f10"
#define MESSAGE "somebody's only copy\n"

static struct store *store;

static void event(void *ctx, const char *vm, const char *text)
{
	(void)ctx, (void)vm;
	FUZZ_CHECK(*text);
}

static char *path_of(const char *name)
{
	char *path = NULL;
	FUZZ_CHECK(asprintf(&path, "%s/%s", fuzz_dir(), name) > 0);
	return path;
}

static void put(const char *name, const void *data, size_t size)
{
	int fd = openat(fuzz_dirfd(), name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0 || fuzz_pwrite(fd, data, size, 0) != (ssize_t)size)
		fuzz_fail("%s: %s", name, strerror(errno));
	close(fd);
}

static void open_store(void)
{
	static const char *const dirs[] = {"source", "pool"};
	for (size_t i = 0; i < sizeof dirs / sizeof *dirs; i++)
		FUZZ_CHECK(mkdirat(fuzz_dirfd(), dirs[i], 0700) == 0);
	char *source = path_of("source"), *pool = path_of("pool");
	struct pool_config pools[] = {{"p", pool}};
	struct store_config config = {.source_dir = source, .pools = pools, .nr_pools = 1, .log = {event, NULL}};
	struct reason why = {""};
	if (store_open(&config, &store, &why) != 0)
		fuzz_fail("the store: %s", why.text);
	FUZZ_CHECK(mkdirat(fuzz_dirfd(), VM_DIR, 0700) == 0);
	free(source);
	free(pool);
}

/* --- vm.xml ------------------------------------------------------------------------------------------------------ */

static void check_same_disks(const struct vm_disk *a, size_t nr_a, const struct vm_disk *b, size_t nr_b)
{
	FUZZ_CHECK(nr_a == nr_b);
	for (size_t i = 0; i < nr_a; i++) {
		FUZZ_CHECK(same_text(a[i].file_name, b[i].file_name) && same_text(a[i].target, b[i].target) && same_text(a[i].layer, b[i].layer));
		FUZZ_CHECK(a[i].format == b[i].format && a[i].full == b[i].full && a[i].preallocate == b[i].preallocate);
		FUZZ_CHECK(same_text(a[i].pending_path, b[i].pending_path) && same_text(a[i].pending_snapshot, b[i].pending_snapshot) &&
			   same_text(a[i].pending_base, b[i].pending_base) && same_text(a[i].pending_row, b[i].pending_row) &&
			   same_text(a[i].full_base, b[i].full_base) && same_text(a[i].path, b[i].path));
	}
}

static void check_same_snapshot(const struct vm_snapshot *a, const struct vm_snapshot *b)
{
	FUZZ_CHECK(!a == !b);
	if (!a)
		return;
	FUZZ_CHECK(same_text(a->name, b->name) && same_text(a->uuid, b->uuid) && same_text(a->parent, b->parent) && same_text(a->state, b->state));
	FUZZ_CHECK(same_text(a->config, b->config) && a->created == b->created && same_text(a->memory_path, b->memory_path));
	FUZZ_CHECK(same_text(a->description, b->description) && same_text(a->left_out, b->left_out));
	check_same_disks(a->disks, a->nr_disks, b->disks, b->nr_disks);
}

static void check_same(const struct vm *a, const struct vm *b)
{
	FUZZ_CHECK(same_text(a->name, b->name) && same_text(a->config, b->config) && same_text(a->origin, b->origin) && a->place == b->place);
	FUZZ_CHECK(a->created == b->created && a->mode == b->mode && same_text(a->memory_path, b->memory_path) && same_text(a->preview, b->preview));
	FUZZ_CHECK(a->nr_snapshots == b->nr_snapshots && a->current == b->current);
	check_same_disks(a->disks, a->nr_disks, b->disks, b->nr_disks);
	for (size_t i = 0; i < a->nr_snapshots; i++)
		check_same_snapshot(a->snapshots[i], b->snapshots[i]);
	check_same_snapshot(a->saved, b->saved);
}

/* No path leads out of the store, or of a pool that there is. */
static bool is_ours(const char *path)
{
	static const char nowhere[] = "(no such pool)/";
	return path && !strstr(path, "/..") && (strncmp(path, fuzz_dir(), strlen(fuzz_dir())) == 0 || strncmp(path, nowhere, strlen(nowhere)) == 0);
}

static void check_paths(const struct vm *vm)
{
	for (size_t i = 0; i < vm->nr_disks; i++)
		FUZZ_CHECK(is_ours(vm->disks[i].path));
	for (size_t i = 0; i < vm->nr_snapshots; i++)
		FUZZ_CHECK(!vm->snapshots[i]->memory_path || is_ours(vm->snapshots[i]->memory_path));
}

static void load_vm(const uint8_t *data, size_t size)
{
	struct vm *vm = NULL, *again = NULL;
	struct reason why = {""};
	put(VM_DIR "/vm.xml", data, size);
	int err = manifest_load(store, UUID, &vm, &why);
	FUZZ_CHECK(err <= 0 && (!err || why.text[0]));
	if (err)
		return;
	check_paths(vm);
	bool unsure = false;
	err = manifest_save(store, vm, &unsure, &why);
	if (err && err != -EINVAL && err != -EFBIG)
		fuzz_fail("it can't be saved: %d %s", err, why.text);
	if (!err) {
		if (manifest_load(store, UUID, &again, &why) != 0)
			fuzz_fail("what was saved can't be loaded: %s", why.text);
		check_same(vm, again);
	}
	vm_put(vm);
	vm_put(again);
}

/* --- the ledger --------------------------------------------------------------------------------------------------- */

static bool needed;

static bool is_needed(void *ctx, const char *layer)
{
	(void)ctx, (void)layer;
	return needed;
}

static bool is_there(const char *name)
{
	return faccessat(fuzz_dirfd(), name, F_OK, AT_SYMLINK_NOFOLLOW) == 0;
}

/* The entry is of VOLUME, which was in the pool before; its numbers aren't those of a file that is there, unless by "SAME". */
static void load_entry(const uint8_t *data, size_t size, unsigned how)
{
	struct pool *pool = pool_find(store, "p", 1);
	put("pool/" VOLUME, MESSAGE, strlen(MESSAGE));
	put("pool/other.raw", MESSAGE, strlen(MESSAGE));
	put("source/.vmsnapfs/pools/p/" VOLUME, data, size);
	bool owned = pool_owns(pool, VOLUME);
	FUZZ_CHECK(!pool_has(pool, VOLUME) || owned);
	needed = how & 1;
	if (how & 2)
		pool_unlink(pool, VOLUME);
	else if (how & 4)
		pool_part_abandon(pool, VOLUME);
	else
		pool_clear_leftovers(store, pool, is_needed, NULL);
	FUZZ_CHECK(is_there("pool/other.raw"));
	FUZZ_CHECK(owned || is_there("pool/" VOLUME));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (!store)
		open_store();
	if (!size)
		return -1;
	fuzz_begin(WORDS_MEMORY_MAX, 100, 64u << 20);
	if (data[0] % 8 < 6)
		load_vm(data + 1, size - 1);
	else
		load_entry(data + 1, size - 1, data[0] / 8);
	fuzz_end();
	return 0;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed)
{
	return texts_mutate(data, 1, size, max_size, seed);
}
