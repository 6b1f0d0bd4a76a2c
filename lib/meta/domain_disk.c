/* domain_change_disk: another name, bus or serial number for a disk that a configuration has. */
#include "meta/domain.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/mem.h"
#include "meta/domain_edit.h"
#include "meta/xml_edit.h"

#define SERIAL_LEN 20 /* what the shortest of them, virtio's, holds */
#define WWN_LEN	   16
#define WWN_VENDOR 7 /* the digit that says which kind it is, and the vendor's six */

/* --- what a bus has that others don't ----------------------------------------------------------------------------------- */

enum bus { BUS_VIRTIO = 1, BUS_SCSI = 2, BUS_SATA = 4, BUS_IDE = 8, BUS_USB = 16, BUS_XEN = 32, BUS_SD = 64 };

static const struct bus_word {
	const char *word;
	enum bus bus;
} buses[] = {{"virtio", BUS_VIRTIO}, {"scsi", BUS_SCSI}, {"sata", BUS_SATA}, {"ide", BUS_IDE}, {"usb", BUS_USB}, {"xen", BUS_XEN}, {"sd", BUS_SD}};

/* 0: no bus for disks. */
static unsigned bus_by_word(const char *word)
{
	for (size_t i = 0; i < sizeof buses / sizeof *buses; i++)
		if (!strcmp(buses[i].word, word))
			return buses[i].bus;
	return 0;
}

/* libvirt refuses a domain in which one of these stands at a disk of another bus. ELEMENT NULL: the <disk> itself; ATTR NULL: all of ELEMENT. */
static const struct bound {
	const char *element, *attr;
	unsigned buses;
} bounds[] = {
	{NULL, "model", BUS_VIRTIO},
	{"driver", "ioeventfd", BUS_VIRTIO},
	{"driver", "event_idx", BUS_VIRTIO},
	{"driver", "iothread", BUS_VIRTIO},
	{"driver", "queues", BUS_VIRTIO},
	{"driver", "queue_size", BUS_VIRTIO},
	{"driver", "iommu", BUS_VIRTIO},
	{"driver", "ats", BUS_VIRTIO},
	{"driver", "packed", BUS_VIRTIO},
	{"driver", "page_per_vq", BUS_VIRTIO},
	{"target", "removable", BUS_USB | BUS_SCSI},
	{"target", "rotation_rate", BUS_SCSI | BUS_SATA | BUS_IDE},
	{"wwn", NULL, BUS_SCSI | BUS_SATA | BUS_IDE},
	{"vendor", NULL, BUS_SCSI},
	{"product", NULL, BUS_SCSI},
};

static void drop_foreign(xmlNodePtr disk, unsigned bus)
{
	for (size_t i = 0; i < sizeof bounds / sizeof *bounds; i++) {
		xmlNodePtr node = bounds[i].element ? xml_child(disk, bounds[i].element) : disk;
		if (!node || (bounds[i].buses & bus))
			continue;
		if (bounds[i].attr)
			xml_drop_attr(node, bounds[i].attr);
		else
			xml_drop(node);
	}
	xmlNodePtr driver = xml_child(disk, "driver");
	if (driver && !(bus & BUS_VIRTIO))
		xml_drop_children(driver, "iothreads");
}

/* The user's own alias stays: <qemu:commandline> and others may name it. */
static void drop_alias(xmlNodePtr disk)
{
	xmlNodePtr alias = xml_child(disk, "alias");
	auto_free char *name = xml_attr(alias, "name");
	if (alias && (!name || strncmp(name, "ua-", 3) != 0))
		xml_drop(alias);
}

static int set_bus(xmlNodePtr disk, const char *word, struct reason *why)
{
	xmlNodePtr target = xml_child(disk, "target");
	auto_free char *old = xml_attr(target, "bus");
	unsigned bus = bus_by_word(word);
	if (!bus)
		return reason_set(why, -EINVAL, "'%s' is no bus of a disk: expected virtio, scsi, sata, ide, usb, xen or sd", word);
	if (old && !strcmp(old, word))
		return 0;
	xml_drop_children(disk, "address");
	drop_alias(disk);
	drop_foreign(disk, bus);
	return xml_set_attr(target, "bus", word);
}

/* --- names and numbers --------------------------------------------------------------------------------------------------- */

static int set_target(xmlNodePtr domain, xmlNodePtr disk, const char *name, struct reason *why)
{
	xmlNodePtr other = domain_device_at(domain, name);
	if (other == disk)
		return 0;
	if (other)
		return reason_set(why, -EEXIST, "the configuration has a disk or drive at %s already", name);
	if (!domain_is_disk_name(name))
		return reason_set(why, -EINVAL, "'%s' is no disk's name: use vda, sda, hda, xvda and so on", name);
	return xml_set_attr(xml_child(disk, "target"), "dev", name);
}

static int random_digits(char *text, size_t len)
{
	for (size_t i = 0; i < len; i++) {
		unsigned char byte;
		if (getrandom(&byte, 1, 0) != 1)
			return -EIO;
		text[i] = "0123456789abcdef"[byte & 15];
	}
	text[len] = '\0';
	return 0;
}

static int renew_serial(xmlNodePtr disk)
{
	char text[SERIAL_LEN + 1];
	xmlNodePtr serial = xml_child(disk, "serial");
	int err = serial ? random_digits(text, SERIAL_LEN) : 0;
	return err || !serial ? err : xml_set_text(serial, text);
}

static int renew_wwn(xmlNodePtr disk)
{
	xmlNodePtr wwn = xml_child(disk, "wwn");
	auto_free char *old = xml_text(wwn);
	char text[WWN_LEN + 1] = "5000000";
	if (!wwn)
		return 0;
	if (old && strlen(old) == WWN_LEN && strspn(old, "0123456789abcdefABCDEF") == WWN_LEN)
		memcpy(text, old, WWN_VENDOR);
	int err = random_digits(text + WWN_VENDOR, WWN_LEN - WWN_VENDOR);
	return err ? err : xml_set_text(wwn, text);
}

/* --- all of it ----------------------------------------------------------------------------------------------------------- */

struct change {
	const char *target, *bus; /* NULL: the same */
	bool renew_serial;
};

static int change_disk(xmlNodePtr domain, const char *target, const struct change *to, struct reason *why)
{
	xmlNodePtr disk = domain_device_at(domain, target);
	if (!disk || !domain_device_is_disk(disk))
		return reason_set(why, -ENOENT, "the configuration has no disk %s", target);
	int err = to->target ? set_target(domain, disk, to->target, why) : 0;
	if (!err && to->bus)
		err = set_bus(disk, to->bus, why);
	if (!err && to->renew_serial)
		err = renew_serial(disk);
	if (!err && to->renew_serial)
		err = renew_wwn(disk);
	return err;
}

int domain_change_disk(const char *text, size_t len, const char *target, const char *new_target, const char *new_bus, bool new_serial,
		       char **ret_text, struct reason *why)
{
	struct domain_edit edit;
	const struct change to = {new_target, new_bus, new_serial};
	int err = domain_edit_init(&edit, text, len, why);
	if (!err)
		err = change_disk(edit.root, target, &to, why);
	if (!err)
		err = domain_edit_print(&edit, ret_text);
	domain_edit_done(&edit);
	return err == -ENOMEM ? reason_set(why, err, "out of memory") : err;
}
