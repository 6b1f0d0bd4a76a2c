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

/* Parses a <domain> element. -EINVAL: not a domain, no name. The caller frees with domain_done. */
int domain_parse(xmlNodePtr node, struct domain *ret, struct reason *why);
int domain_parse_text(const char *text, size_t len, struct domain *ret, struct reason *why);
void domain_done(struct domain *domain);

/* Where a disk of the VM lies, for domain_render. */
struct domain_disk_file {
	const char *target;
	const char *path;   /* absolute */
	const char *format; /* "qcow2", "raw" */
};

/* The configuration with NAME and UUID, and with exactly these disks: a <disk device='disk'> whose target is in FILES gets that file
 * (type='file', source, driver type; its <backingStore> and <mirror> go, its snapshot-irrelevant rest is kept), file disks
 * that aren't in FILES go, network disks, CD-ROMs, LUNs and so on stay, and a file without a <disk> gets a new one (bus by its
 * name: vd* virtio, sd* scsi→sata where no scsi controller is needed, hd* ide, xvd* xen). TEXT is a whole <domain>. The caller frees. */
int domain_render(const char *text, size_t len, const char *name, const char *uuid, const struct domain_disk_file *files,
		  size_t nr_files, char **ret_text, struct reason *why);

/* Gives a copied configuration an identity of its own, as virt-clone does: name, UUID (also in <sysinfo>), a new <genid> where there is
 * one, title dropped, every interface's MAC address new (vendor prefix kept) and its target dev dropped, graphics ports automatic, guest-agent
 * channel and serial file paths that hold the old name renamed, <nvram> pointing at NVRAM_PATH (NULL: left out as
 * virt-clone would find it), id and seclabel of a running instance dropped. Nothing else is touched. The caller frees. */
int domain_clone_identity(const char *text, size_t len, const char *name, const char *uuid, const char *nvram_path,
			  char **ret_text, struct reason *why);

/* A minimal valid configuration (libvirt schema) without disks, for bare images and empty clones. The caller frees. */
int domain_minimal(const char *name, const char *uuid, char **ret_text);

#endif
