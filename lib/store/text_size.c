#include "store/text_size.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "base/mem.h"
#include "meta/xml.h"
#include "store/source.h"
#include "store/store_internal.h"

#define NR_SLOTS 16384u /* 384 KiB */

/* What is remembered of one text, as it was when its files had that stamp. Which slot is told by the key: the later text wins. */
struct size_slot {
	uint64_t key;
	uint64_t stamp;
	size_t len;
};

struct text_sizes {
	pthread_mutex_t lock;
	struct size_slot slots[NR_SLOTS]; /* protected by lock */
};

int text_sizes_new(struct text_sizes **ret)
{
	*ret = calloc(1, sizeof **ret);
	if (!*ret)
		return -ENOMEM;
	pthread_mutex_init(&(*ret)->lock, NULL);
	return 0;
}

void text_sizes_free(struct text_sizes *sizes)
{
	if (!sizes)
		return;
	pthread_mutex_destroy(&sizes->lock);
	free(sizes);
}

/* Changes when the file does; 0: it has changed so lately that it doesn't tell, or isn't there. */
static uint64_t stamp_of(const char *path)
{
	struct stat st;
	return lstat(path, &st) < 0 || stamp_is_fresh(&st) ? 0 : stamp_make(&st);
}

static bool sizes_lookup(struct text_sizes *sizes, const struct size_slot *wanted, size_t *ret_len)
{
	pthread_mutex_lock(&sizes->lock);
	const struct size_slot *slot = &sizes->slots[wanted->key % NR_SLOTS];
	bool hit = slot->key == wanted->key && slot->stamp == wanted->stamp;
	if (hit)
		*ret_len = slot->len;
	pthread_mutex_unlock(&sizes->lock);
	return hit;
}

static void sizes_store(struct text_sizes *sizes, const struct size_slot *slot)
{
	pthread_mutex_lock(&sizes->lock);
	sizes->slots[slot->key % NR_SLOTS] = *slot;
	pthread_mutex_unlock(&sizes->lock);
}

/* A snapshot's texts are made from its metadata, and the domain where they hold none. No key: they are not to be remembered. */
static struct size_slot slot_of(const struct vm *vm, const struct vm_snapshot *snapshot, const char *which)
{
	uint64_t stamps[] = {stamp_of(snapshot->metadata_path), stamp_of(vm->xml_path)};
	if (!stamps[0] || !stamps[1])
		return (struct size_slot){0};
	uint64_t key = hash_text(hash_text(HASH_START, which), snapshot->metadata_path);
	return (struct size_slot){.key = key ^ key >> 32, .stamp = hash_bytes(HASH_START, stamps, sizeof stamps)};
}

int store_domain_xml_size(struct store *store, const struct vm *vm, const struct vm_snapshot *snapshot, const char *mount_dir,
			  size_t *ret_len)
{
	bool is_libvirt = vm->kind == VM_FOUND_LIBVIRT && (!snapshot || snapshot->metadata_path);
	auto_free char *text = NULL;
	struct stat st;
	if (is_libvirt && !snapshot && lstat(vm->xml_path, &st) == 0 && S_ISREG(st.st_mode) && st.st_size <= XML_TEXT_MAX) {
		*ret_len = (size_t)st.st_size; /* it is shown as it is */
		return 0;
	}
	struct size_slot slot = is_libvirt && snapshot ? slot_of(vm, snapshot, "domain") : (struct size_slot){0};
	if (slot.key && sizes_lookup(store->text_sizes, &slot, ret_len))
		return 0;
	int err = store_domain_xml(store, vm, snapshot, mount_dir, &text, &slot.len, NULL, NULL);
	if (err)
		return err;
	if (slot.key)
		sizes_store(store->text_sizes, &slot);
	*ret_len = slot.len;
	return 0;
}

int store_snapshot_xml_size(struct store *store, const struct vm *vm, const struct vm_snapshot *snapshot, size_t *ret_len)
{
	bool is_libvirt = vm->kind == VM_FOUND_LIBVIRT && snapshot->metadata_path;
	auto_free char *text = NULL;
	struct size_slot slot = is_libvirt ? slot_of(vm, snapshot, "snapshot") : (struct size_slot){0};
	if (slot.key && sizes_lookup(store->text_sizes, &slot, ret_len))
		return 0;
	int err = store_snapshot_xml(store, vm, snapshot, &text, &slot.len, NULL, NULL);
	if (err)
		return err;
	if (slot.key)
		sizes_store(store->text_sizes, &slot);
	*ret_len = slot.len;
	return 0;
}
