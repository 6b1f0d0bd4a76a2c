#include "fs/text.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/strbuf.h"
#include "meta/action.h"

static const char readme[] =
	"vmsnapfs: virtual machines and their snapshots as files\n"
	"\n"
	"vms/VM/disks/vda.img                  a disk as it is now: one flat raw file\n"
	"vms/VM/snapshots/S/disks/vda.img      as it was in snapshot S, the whole chain of images in one\n"
	"vms/VM/snapshots/S/domain.xml         the configuration at that moment; snapshot.xml: the snapshot itself\n"
	"vms/VM/current                        the snapshot that was taken or applied last\n"
	"vms/VM/status, vms/VM/events          what it is, and what happened to it\n"
	"vms/VM/actions/                       commands: cat them to see how. For VMs made here; clone for all\n"
	"clones/                               VMs that were made here\n"
	"jobs/                                 work in the background; rm cancels it\n"
	"pools/NAME/                           further directories for images (-o pool=NAME:DIR): each image or block device in one as a flat raw file\n"
	"events                                what happened, and why something was refused (tail -f works)\n"
	"\n"
	"Nothing that was found is ever changed. To have a copy that can be:\n"
	"\n"
	"  mkdir clones/VM@S/NEW               a whole VM, at once, however large its disks\n"
	"  cp -r vms/VM/snapshots/S clones/NEW the same, by copying\n"
	"  mkdir clones/NEW                    an empty one: copy a domain.xml and disks of any snapshots into it\n"
	"\n"
	"clones/NEW/disks/vda.img can be written by anything, QEMU included. domain.xml is the VM's configuration: edit it, or\n"
	"virsh define it; it names the disks' own files, which stay when this mount has gone.\n"
	"\n"
	"  cp new.img clones/NEW/disks/vdb.img adds a disk; rm removes one\n"
	"  mv clones/NEW clones/OTHER          renames the VM; mv clones/NEW vms/NEW makes it an ordinary one\n"
	"  rmdir clones/NEW                    removes it (so does rm -r)\n"
	"\n"
	"A volume that depends on nothing, in a pool: the ending says the format (.qcow2, else raw). Only what was made here is written to.\n"
	"\n"
	"  cp vms/VM/snapshots/S/disks/vda.img pools/NAME/golden.qcow2\n"
	"\n"
	"A VM made here has snapshots of its own, in clones/NEW:\n"
	"\n"
	"  mkdir snapshots/S                   takes one, of all disks at one moment\n"
	"  ln -sfn snapshots/S current         goes back to it; no other snapshot is lost, nor the state before\n"
	"  mv snapshots/S snapshots/T          renames; rmdir deletes it, and changes nothing else\n"
	"  cat actions/*                       what can be written there: snapshots of some disks, previews of mixes, other ways to delete and\n"
	"                                      to clone\n"
	"\n"
	"Other files beside domain.xml, of editors for example, are kept in memory until the mount ends.\n"
	"getfattr -d FILE shows more of a VM, snapshot or disk. The manual page is vmsnapfs(8).\n";

bool text_is(const struct place *place)
{
	switch (place->node.kind) {
	case NODE_README:
	case NODE_JOB:
	case NODE_STATUS:
	case NODE_SNAPSHOT_XML:
	case NODE_DOMAIN:
	case NODE_ACTION:
		return true;
	case NODE_NONE:
	case NODE_ROOT:
	case NODE_EVENTS:
	case NODE_VMS:
	case NODE_CLONES:
	case NODE_CLONES_OF:
	case NODE_CLONE_LINK:
	case NODE_JOBS:
	case NODE_POOLS:
	case NODE_VM:
	case NODE_VM_EVENTS:
	case NODE_CURRENT:
	case NODE_SNAPSHOTS:
	case NODE_ACTIONS:
	case NODE_SCRATCH:
	case NODE_SNAPSHOT:
	case NODE_MEMORY:
	case NODE_DISKS:
	case NODE_DISK:
	case NODE_KINDS:
		break;
	}
	return false;
}

static int load_fixed(const char *text, char **ret, size_t *ret_len)
{
	*ret = strdup(text);
	*ret_len = strlen(text);
	return *ret ? 0 : -ENOMEM;
}

static int load_job(struct fs *fs, const struct place *place, char **ret, size_t *ret_len)
{
	auto_free char *name = job_numbers_name(fs->job_numbers, node_number(place->node));
	return name ? store_job_text(fs->store, name, ret, ret_len) : -ENOENT;
}

static int load_status(struct fs *fs, const struct place *place, char **ret, size_t *ret_len)
{
	auto_free char *text = NULL;
	struct strbuf b = {0};
	size_t len = 0;
	int err = store_status_text(fs->store, place->vm, &text, &len);
	if (err)
		return err;
	strbuf_add(&b, text, len);
	passthrough_describe(fs->passthrough, place->vm->id, &b);
	err = strbuf_take(&b, ret, ret_len);
	strbuf_done(&b);
	return err;
}

int text_load(struct fs *fs, const struct place *place, char **ret, size_t *ret_len, struct access *access, struct reason *why)
{
	switch ((int)place->node.kind) {
	case NODE_README:
		return load_fixed(readme, ret, ret_len);
	case NODE_ACTION:
		return load_fixed(action_usage(place->node.disk), ret, ret_len);
	case NODE_JOB:
		return load_job(fs, place, ret, ret_len);
	case NODE_STATUS:
		return load_status(fs, place, ret, ret_len);
	case NODE_SNAPSHOT_XML:
		return store_snapshot_xml(fs->store, place->vm, place->snapshot, ret, ret_len, access, why);
	case NODE_DOMAIN:
		return store_domain_xml(fs->store, place->vm, place->snapshot, fs->mount_dir, ret, ret_len, access, why);
	}
	return -EINVAL;
}

int text_size(struct fs *fs, const struct place *place, size_t *ret_len)
{
	auto_free char *text = NULL;
	if (place->node.kind == NODE_SNAPSHOT_XML)
		return store_snapshot_xml_size(fs->store, place->vm, place->snapshot, ret_len);
	if (place->node.kind == NODE_DOMAIN)
		return store_domain_xml_size(fs->store, place->vm, place->snapshot, fs->mount_dir, ret_len);
	return text_load(fs, place, &text, ret_len, NULL, NULL);
}
