/* libvirt domain XML (https://libvirt.org/formatdomain.html): what we need to know of it, and the changes that a clone makes. */
#ifndef META_DOMAIN_H
#define META_DOMAIN_H

#include <stdbool.h>
#include <stddef.h>

#include "meta/xml.h"

enum domain_disk_kind {
	DOMAIN_DISK_FILE,
	DOMAIN_DISK_BLOCK,
	DOMAIN_DISK_OTHER, /* network, volume, nvme, …: not a file that we could read */
};

/* A <disk device='disk'> (the default). CD-ROMs, floppies and LUNs are devices of the configuration and not listed. */
struct domain_disk {
	char *target; /* "vda" */
	char *path;   /* of the source; NULL: no medium, or not a file */
	char *format; /* <driver type=…>; libvirt's default where it is missing: "raw" */
	enum domain_disk_kind kind;
	bool shareable, readonly;
	bool encrypted;	   /* <encryption> in the disk or its source */
	char *snapshot;	   /* the snapshot attribute: "internal", "external", "no"; NULL: absent */
	char *source_type; /* the disk's type attribute, for messages */
};

struct domain {
	char *name;
	char *uuid; /* NULL: absent */
	char *title;
	char *nvram; /* path of the NVRAM file; NULL: none */
	struct domain_disk *disks;
	size_t nr_disks;
};

#define DOMAIN_DISKS_MAX 4000 /* disk ids of a VM have 12 bits */

/* Parses a <domain> element. -EINVAL: not a domain, no name; or its disks: one without a target, two with the same, a
 * target that can't be a file name, too many. The caller frees with domain_done. */
int domain_parse(xmlNodePtr node, struct domain *ret, struct reason *why);
int domain_parse_text(const char *text, size_t len, struct domain *ret, struct reason *why);
void domain_done(struct domain *domain);

/* Where a disk of the VM lies, for domain_render. */
struct domain_disk_file {
	const char *target;
	const char *path;   /* absolute */
	const char *format; /* "qcow2", "raw" */
	bool is_block;	    /* a block device: type='block' */
};

/* The configuration with NAME and UUID (NULL: as they are), and with exactly these disks.
 *
 * A <disk device='disk'> whose target is in FILES gets that file: type='file' (or 'block'), source, driver type. Its <backingStore> and
 * <mirror> go, and where the file is another one, all that described the old source; the rest is kept. File and block disks that
 * aren't in FILES go: a copy that kept them would write to the original's. Network disks, CD-ROMs, LUNs and so on stay.
 * A file without a <disk> gets a new one, its bus by its name: vd* virtio, sd* scsi where the domain has such a
 * controller, else sata, hd* ide, xvd* xen.
 *
 * TEXT is a whole <domain>. -EINVAL: it isn't, or a target no bus is known for; -EEXIST: the target is taken by a
 * device that stays (a CD-ROM), or twice in FILES. The caller frees. */
int domain_render(const char *text, size_t len, const char *name, const char *uuid, const struct domain_disk_file *files,
		  size_t nr_files, char **ret_text, struct reason *why);

/* The configuration with the disk TARGET changed: its name on the bus, its bus ("virtio", "scsi", "sata", "ide", "usb", "xen", "sd"; NULL: as
 * they are), and with NEW_SERIAL another <serial> and <wwn> (the vendor's part kept) where it has them.
 *
 * With another bus, its <address> goes (libvirt gives it one, and a controller), as does a running instance's <alias> and all that libvirt has
 * for disks of the old bus alone (queues, I/O threads, vendor and product, …). -ENOENT: there is no such disk; -EEXIST: NEW_TARGET is
 * taken, by a disk or a drive; -EINVAL: not a <domain>, or no name or bus of a disk. The caller frees. */
int domain_change_disk(const char *text, size_t len, const char *target, const char *new_target, const char *new_bus, bool new_serial,
		       char **ret_text, struct reason *why);

/* Gives a copied configuration an identity of its own, as virt-clone does and further. New are: name; UUID (in <sysinfo> as well, wherever an entry is
 * the old one: other serial numbers stay); <genid>; every interface's MAC address (vendor's part kept, a filter's parameter follows) and the
 * id that a virtual switch has for it; <nvram>, which points at NVRAM_PATH (NULL: left out). Gone are: title, id and labels of a running
 * instance, an interface's target dev, the emulated TPM's <source>, a <varstore>'s path, and lasting memory (nvdimm, pmem) that the
 * original writes to. Graphics ports and vsock addresses become automatic. Where QEMU makes a file or socket (channels, serial ports and the
 * like, their logs, graphics, vhost-user servers, audio files, pstore), the old name in its path becomes the new one; a channel's path without it
 * that libvirt made goes. Nothing else is touched: metadata, other namespaces, unknown elements and comments stay where they are.
 *
 * RET_NOTES says in lines (no newline behind the last; "": nothing) what was left out, and what the two still share, for people. -EINVAL: not a
 * <domain>, or a name that can't be a file's. The caller frees both. */
int domain_clone_identity(const char *text, size_t len, const char *name, const char *uuid, const char *nvram_path, char **ret_text,
			  char **ret_notes, struct reason *why);

/* A minimal valid configuration (libvirt schema) without disks, for bare images and empty clones: KVM, x86-64, BIOS,
 * 2 GiB, a serial console and VNC. UUID NULL: none. The caller frees. */
int domain_minimal(const char *name, const char *uuid, char **ret_text);

#endif
