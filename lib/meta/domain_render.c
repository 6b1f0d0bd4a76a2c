/* domain_render: the disks that a VM has, written into its configuration. */
#include "meta/domain.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "meta/domain_edit.h"
#include "meta/xml_edit.h"

struct file_list {
	const struct domain_disk_file *files;
	size_t nr;
};

static const struct domain_disk_file *file_of(const struct file_list *list, const char *target)
{
	for (size_t i = 0; target && i < list->nr; i++) {
		if (strcmp(list->files[i].target, target) == 0)
			return &list->files[i];
	}
	return NULL;
}

/* --- a disk that is there already ----------------------------------------------------------------------------- */

static int set_driver(xmlNodePtr disk, const char *format)
{
	xmlNodePtr driver = xml_child(disk, "driver");
	bool had_driver = driver;
	if (!driver)
		driver = xml_add(disk, NULL, "driver");
	if (!driver)
		return -ENOMEM;
	int err = had_driver ? 0 : xml_set_attr(driver, "name", "qemu");
	if (!err)
		err = xml_set_attr(driver, "type", format);
	if (!err && strcmp(format, "qcow2") != 0) {
		/* libvirt refuses these for every other format */
		xml_drop_children(driver, "metadata_cache");
		xml_drop_attr(driver, "discard_no_unmap");
	}
	return err;
}

/* A device of the host has another word in both places. */
static const char *disk_type(const struct domain_disk_file *file)
{
	return file->is_block ? "block" : "file";
}

static const char *source_attr(const struct domain_disk_file *file)
{
	return file->is_block ? "dev" : "file";
}

static bool has_source(xmlNodePtr disk, const struct domain_disk_file *file)
{
	auto_free char *type = xml_attr(disk, "type");
	auto_free char *old = xml_attr(xml_child(disk, "source"), source_attr(file));
	return type && strcmp(type, disk_type(file)) == 0 && old && strcmp(old, file->path) == 0;
}

/* A new <source> and not the old one changed: its attributes and children (index, startup policy, labels, slices,
 * reservations, secrets, hosts) all speak of the old file. So do the disk's own secrets. */
static int replace_source(xmlNodePtr disk, const struct domain_disk_file *file)
{
	xmlNodePtr old = xml_child(disk, "source");
	xmlNodePtr source = xml_add(disk, old ? old : xml_child(disk, "driver"), "source");
	if (!source)
		return -ENOMEM;
	xml_drop(old);
	xml_drop_children(disk, "encryption");
	xml_drop_children(disk, "auth");
	int err = xml_set_attr(source, source_attr(file), file->path);
	return err ? err : xml_set_attr(disk, "type", disk_type(file));
}

static int set_file(xmlNodePtr disk, const struct domain_disk_file *file)
{
	xml_drop_children(disk, "backingStore");
	xml_drop_children(disk, "mirror");
	int err = set_driver(disk, file->format);
	if (!err && !has_source(disk, file))
		err = replace_source(disk, file);
	return err;
}

static bool is_ours_to_drop(xmlNodePtr disk)
{
	auto_free char *type = xml_attr(disk, "type");
	return !type || strcmp(type, "file") == 0 || strcmp(type, "block") == 0;
}

static int update_disks(xmlNodePtr domain, const struct file_list *list)
{
	int err = 0;
	for (xmlNodePtr disk = domain_device(domain, "disk"), next; disk && !err; disk = next) {
		next = domain_next_device(disk, "disk");
		if (!domain_device_is_disk(disk))
			continue;
		auto_free char *target = domain_device_target(disk);
		const struct domain_disk_file *file = file_of(list, target);
		if (file)
			err = set_file(disk, file);
		else if (is_ours_to_drop(disk))
			xml_drop(disk);
	}
	return err;
}

/* --- a new one ------------------------------------------------------------------------------------------------ */

static bool has_scsi_controller(xmlNodePtr domain)
{
	for (xmlNodePtr c = domain_device(domain, "controller"); c; c = domain_next_device(c, "controller")) {
		auto_free char *type = xml_attr(c, "type");
		if (type && strcmp(type, "scsi") == 0)
			return true;
	}
	return false;
}

/* NULL: not a disk's name. */
static const char *bus_of(xmlNodePtr domain, const char *target)
{
	if (domain_has_prefix(target, "vd"))
		return "virtio";
	if (domain_has_prefix(target, "sd"))
		return has_scsi_controller(domain) ? "scsi" : "sata";
	if (domain_has_prefix(target, "hd"))
		return "ide";
	return domain_has_prefix(target, "xvd") ? "xen" : NULL;
}

/* The device that new disks follow: the last disk, or the emulator; NULL: none of them. */
static xmlNodePtr last_disk(xmlNodePtr devices)
{
	xmlNodePtr last = xml_child(devices, "emulator");
	for (xmlNodePtr disk = xml_child(devices, "disk"); disk; disk = xml_next(disk, "disk"))
		last = disk;
	return last;
}

static xmlNodePtr add_disk(xmlNodePtr domain)
{
	xmlNodePtr devices = xml_child(domain, "devices");
	if (!devices)
		devices = xml_add(domain, xmlLastElementChild(domain), "devices");
	return devices ? xml_add(devices, last_disk(devices), "disk") : NULL;
}

static int fill_disk(xmlNodePtr disk, const struct domain_disk_file *file, const char *bus)
{
	int err = xml_set_attr(disk, "type", disk_type(file));
	if (!err)
		err = xml_set_attr(disk, "device", "disk");
	if (!err)
		err = set_file(disk, file);
	xmlNodePtr target = err ? NULL : xml_add(disk, xml_child(disk, "source"), "target");
	if (!err && !target)
		err = -ENOMEM;
	if (!err)
		err = xml_set_attr(target, "dev", file->target);
	return err ? err : xml_set_attr(target, "bus", bus);
}

static int place_file(xmlNodePtr domain, const struct domain_disk_file *file, struct reason *why)
{
	xmlNodePtr there = domain_device_at(domain, file->target);
	if (there && domain_device_is_disk(there))
		return 0;
	if (there) {
		auto_free char *device = xml_attr(there, "device");
		return reason_set(why, -EEXIST, "the configuration has a %s at %s already: name the disk otherwise",
		                  device ? device : "device", file->target);
	}
	const char *bus = bus_of(domain, file->target);
	if (!bus)
		return reason_set(why, -EINVAL, "'%s' is no disk's name: use vda, sda, hda, xvda and so on",
		                  file->target);
	xmlNodePtr disk = add_disk(domain);
	return disk ? fill_disk(disk, file, bus) : -ENOMEM;
}

/* --- all of them ---------------------------------------------------------------------------------------------- */

static int check_files(const struct file_list *list, struct reason *why)
{
	for (size_t i = 0; i < list->nr; i++) {
		const struct domain_disk_file *file = &list->files[i];
		if (file_of(list, file->target) != file)
			return reason_set(why, -EEXIST, "the disk %s is there twice", file->target);
		int err = xml_check_text("path of a disk", file->path, why);
		if (err)
			return reason_prefix(why, err, "disk %s: ", file->target);
	}
	return 0;
}

static int set_disks(xmlNodePtr domain, const struct file_list *list, struct reason *why)
{
	int err = check_files(list, why);
	if (!err)
		err = update_disks(domain, list);
	for (size_t i = 0; i < list->nr && !err; i++)
		err = place_file(domain, &list->files[i], why);
	return err;
}

int domain_render(const char *text, size_t len, const char *name, const char *uuid,
                  const struct domain_disk_file *files, size_t nr_files, char **ret_text, struct reason *why)
{
	struct domain_edit edit;
	int err = domain_edit_init(&edit, text, len, why);
	if (!err && name)
		err = xml_check_text("name", name, why);
	if (!err && name)
		err = domain_edit_name(&edit, name);
	if (!err && uuid)
		err = domain_edit_uuid(&edit, uuid);
	if (!err)
		err = set_disks(edit.root, &(struct file_list){files, nr_files}, why);
	if (!err)
		err = domain_edit_print(&edit, ret_text);
	domain_edit_done(&edit);
	return err == -ENOMEM ? reason_set(why, err, "out of memory") : err;
}
