/* Found VMs from libvirt's files: a domain XML. Its snapshots are in libvirt_snapshots.c. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/file.h"
#include "base/mem.h"
#include "base/name.h"
#include "store/libvirt.h"
#include "store/store_internal.h"

int libvirt_load_text(const char *path, char **ret_text, size_t *ret_len, struct stat *ret_st, struct reason *why)
{
	auto_close int fd = source_open(path, ret_st);
	int err = fd < 0 ? fd : file_load(fd, XML_TEXT_MAX, ret_text, ret_len);
	return err ? reason_set(why, err, "%s: %s", path, strerror(-err)) : 0;
}

/* --- disks ------------------------------------------------------------------------------------------------------------- */

/* What keeps a disk of the configuration from being read at all. */
static int disk_problem(struct store *store, const struct domain_disk *disk, char **ret_text)
{
	int err = 0, n = 0;
	enum image_format format;
	if (disk->kind == DOMAIN_DISK_OTHER) {
		err = -EOPNOTSUPP;
		n = asprintf(ret_text, "a disk of type %s isn't a file", disk->source_type ? disk->source_type : "unknown");
	} else if (disk->encrypted) {
		err = -EOPNOTSUPP;
		n = asprintf(ret_text, "the disk is encrypted");
	} else if (!disk->path) {
		err = -ENOENT;
		n = asprintf(ret_text, "the configuration names no file");
	} else if (*disk->path != '/') {
		err = -ENOENT;
		n = asprintf(ret_text, "%s: not an absolute path", disk->path);
	} else if (disk->kind == DOMAIN_DISK_BLOCK && !store->allow_devices) {
		err = -EOPNOTSUPP;
		n = asprintf(ret_text, "%s is a block device: -o block_devices allows them", disk->path);
	} else if (image_format_parse(disk->format, &format) < 0) {
		err = -EOPNOTSUPP;
		n = asprintf(ret_text, "%s: images of format %s aren't read", disk->path, disk->format);
	}
	return n < 0 ? -ENOMEM : err;
}

/* "vda" gives "vda.img", made valid and unique among DISKS. The caller frees. */
static char *disk_file_name(const char *target, const struct vm_disk *disks, size_t nr)
{
	auto_free char *valid = name_make_valid(target);
	char *name = NULL;
	if (!valid)
		return NULL;
	if (strlen(valid) > 240)
		valid[240] = '\0';
	for (unsigned n = 1;; n++) {
		if ((n == 1 ? asprintf(&name, "%s.img", valid) : asprintf(&name, "%s~%u.img", valid, n)) < 0)
			return NULL;
		if (!vm_find_disk(disks, nr, name))
			return name;
		free(name);
	}
}

int libvirt_add_disk(struct store *store, const struct domain_disk *from, struct vm_disk **disks, size_t *nr_disks)
{
	const char *target = from->target ? from->target : "disk";
	char *file_name = disk_file_name(target, *disks, *nr_disks);
	struct vm_disk *disk = file_name ? vm_disk_add(disks, nr_disks) : NULL;
	if (!disk) {
		free(file_name);
		return -ENOMEM;
	}
	disk->file_name = file_name;
	disk->shareable = from->shareable;
	image_format_parse(from->format ? from->format : "raw", &disk->format);
	if (text_set(&disk->target, target) || text_set(&disk->path, from->path))
		return -ENOMEM;
	auto_free char *text = NULL;
	int err = disk_problem(store, from, &text);
	if (err == -ENOMEM)
		return err;
	if (err)
		vm_disk_set_error(disk, err, text);
	return 0;
}

int libvirt_ref_disk(struct file_refs *refs, const struct vm_disk *disk)
{
	return disk->path && !disk->error ? file_refs_add(refs, disk->path, disk->format) : 0;
}

static int read_disks(struct store *store, const struct domain *domain, struct found_vm *ret, struct strbuf *complaint)
{
	struct vm *vm = ret->vm;
	size_t nr = domain->nr_disks < LIBVIRT_DISKS_MAX ? domain->nr_disks : LIBVIRT_DISKS_MAX;
	if (nr < domain->nr_disks)
		complain(complaint, "%zu disks: only the first %u are shown", domain->nr_disks, LIBVIRT_DISKS_MAX);
	for (size_t i = 0; i < nr; i++) {
		int err = libvirt_add_disk(store, &domain->disks[i], &vm->disks, &vm->nr_disks);
		if (!err)
			err = libvirt_ref_disk(&ret->refs, &vm->disks[vm->nr_disks - 1]);
		if (err)
			return err;
	}
	return 0;
}

/* --- the VM ------------------------------------------------------------------------------------------------------------------ */

static int fill_vm(struct vm *vm, const struct domain *domain, const struct source_file *file, const struct stat *st)
{
	vm->changed = st->st_mtim;
	vm->uid = st->st_uid;
	vm->gid = st->st_gid;
	vm->mode = st->st_mode & 0444;
	vm->is_brief = true;
	vm->name = name_make_valid(domain->name);
	if (!vm->name || text_set(&vm->xml_path, file->path) || text_set(&vm->domain_name, domain->name))
		return -ENOMEM;
	if (domain->uuid)
		return text_set(&vm->uuid, domain->uuid);
	vm->uuid = uuid_of_path(file->path);
	return vm->uuid ? 0 : -ENOMEM;
}

int libvirt_read(struct store *store, const struct source_file *file, struct found_vm *ret, struct reason *why)
{
	auto_free char *text = NULL;
	size_t len = 0;
	struct stat st;
	struct domain domain;
	int err = libvirt_load_text(file->path, &text, &len, &st, why);
	if (!err && (err = domain_parse_text(text, len, &domain, why)))
		reason_prefix(why, err, "%s: ", file->path);
	if (err)
		return err;
	struct strbuf complaint = {0};
	ret->vm = vm_new(VM_FOUND_LIBVIRT, PLACE_VMS);
	err = ret->vm ? fill_vm(ret->vm, &domain, file, &st) : -ENOMEM;
	if (!err && domain.nvram)
		err = file_refs_add(&ret->refs, domain.nvram, IMAGE_RAW);
	if (!err)
		err = read_disks(store, &domain, ret, &complaint);
	domain_done(&domain);
	if (!err && complaint.len)
		err = strbuf_take(&complaint, &ret->complaint, NULL);
	strbuf_done(&complaint);
	return err;
}
