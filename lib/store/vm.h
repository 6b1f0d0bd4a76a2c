/* What the user sees: virtual machines, their snapshots and disks, as plain data.
 *
 * A struct vm is a description at one moment: made whole, then never changed, shared by counted references. When the VM changes, a
 * new description takes its place in the store. Ids are given by the store and keep their meaning while it is open, from one description
 * to the next: a VM's id is never used again; a disk's id stands for its name within that VM (but not for one that comes while another, which had the name, is still open); so does a snapshot's, but a managed VM's stands
 * for its UUID: what is renamed stays the same file, what gets an old name doesn't. */
#ifndef STORE_VM_H
#define STORE_VM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

#include "block/image.h"
#include "block/view.h"

enum vm_kind { VM_FOUND_LIBVIRT, VM_FOUND_BARE, VM_MANAGED };
/* A pool is a managed VM without a configuration, named like the pool, whose disks are the volumes: those that were made here, and (without a layer)
 * those that were found in its directory. */
enum vm_place { PLACE_VMS, PLACE_CLONES, PLACE_POOLS };
#define NR_PLACES 3

#define VM_ID_BITS	 26
#define SNAPSHOT_ID_BITS 20
#define DISK_ID_BITS	 12

struct vm_disk {
	uint32_t id;	/* 1… */
	char *file_name; /* "vda.img", as listed in disks/ */
	char *target;	/* "vda"; NULL: a scratch file of a copying program, not (yet) a disk of the VM */
	char *path;	/* of the image to open; NULL when error is set and there is none */
	enum image_format format;
	char *snapshot; /* internal snapshot in it; NULL: the active state */
	char *layer;	/* managed heads: file name in STORE/layers; else NULL */
	/* Managed heads only: where the layer's data comes from until a job has copied it (an internal snapshot): see store.h. NULL: nowhere else. */
	char *pending_path;
	enum image_format pending_format;
	char *pending_snapshot;
	char *pending_base; /* file name in STORE/layers that the job makes; the layer's header names it already */
	char *pending_row;  /* the snapshot's row in the image when it was cloned: see pending_row_of() */
	/* Managed heads only: what a job is to make of it. */
	bool full;	  /* depend on nothing but this VM's own layers */
	bool preallocate; /* with all its space allocated, once it does */
	char *full_base;  /* become this raw file, named like a layer; NULL: stay what it is */
	bool found;	    /* a pool's: it was in the directory; never renamed nor removed, and written only where it is a device (then it has a layer) */
	bool shareable;	    /* other VMs write to it too: not cloned */
	int error;	/* 0, or why it can't be served: a negative errno, the reason in error_text */
	char *error_text;
};

struct vm_snapshot {
	uint32_t id; /* 1… */
	char *name;  /* unique in the VM: "NAME~2" where two had one name */
	char *uuid;  /* NULL: none */
	char *parent; /* name of a snapshot of this VM; NULL: a root */
	char *state;
	char *description;
	int64_t created; /* seconds since the epoch */
	struct vm_disk *disks;
	size_t nr_disks;
	/* RAM: an internal vmstate in disks[memory_disk], or an external file. */
	int memory_disk; /* -1: none */
	char *memory_path;
	char *metadata_path; /* libvirt's snapshot XML; managed: the store's own, for its <domain>; NULL: none */
	char *config; /* a preview's saved state: the domain XML as it was given; else NULL */
	char *row; /* managed: its element in vm.xml, kept by manifest.c once it is written; NULL: not yet */
	char *left_out; /* managed: targets of the disks that went on without being part of it, separated by blanks; NULL: none */
};

struct vm {
	uint32_t id; /* 1… */
	enum vm_kind kind;
	enum vm_place place;
	bool is_stand_in; /* for one whose description can't be read: only shown */
	char *name; /* unique in its place, valid as a file name */
	char *uuid;
	struct timespec changed; /* of its XML, or of the image of a bare one */
	int64_t created;	 /* managed: seconds since the epoch; else 0 */
	uid_t uid;		 /* owner of its XML or image */
	gid_t gid;
	mode_t mode;		  /* read bits of its XML or image: subset of 0444 */
	char *xml_path;	  /* found libvirt VMs: the domain XML */
	char *domain_name; /* the same: the name as libvirt spells it */
	char *config;	  /* managed: the domain XML as last given; disks and identity are put in when it is shown */
	char *origin;	  /* managed: "VM@SNAPSHOT" it was cloned from; NULL */
	struct vm_disk *disks;
	size_t nr_disks;
	bool is_brief; /* a found libvirt VM without its snapshots, for they haven't been read: see store_whole() */
	struct vm_snapshot **snapshots; /* in order of time; shared between descriptions, so never changed once published */
	size_t nr_snapshots, cap_snapshots;
	int current; /* index of the last applied snapshot; -1: none */
	/* Managed VMs only. */
	char *memory_path; /* RAM that belongs to the state now, from the snapshot that was gone back to; NULL: none */
	char *preview; /* what is previewed, in words; NULL: nothing */
	struct vm_snapshot *saved; /* while there is a preview: the state before, as a snapshot without a name; its parent is what was current */
};

struct vm *vm_ref(struct vm *vm);
void vm_put(struct vm *vm);

const struct vm_snapshot *vm_find_snapshot(const struct vm *vm, const char *name);
int vm_snapshot_index(const struct vm *vm, const char *name); /* -1: there is none */
/* The same, or failing that by UUID. */
int vm_snapshot_lookup(const struct vm *vm, const char *name);
const struct vm_snapshot *vm_snapshot_by_id(const struct vm *vm, uint32_t id);
const struct vm_disk *vm_find_disk(const struct vm_disk *disks, size_t nr, const char *file_name);
/* Which of these disks NAME means: its target, its file name, or failing these its image, by path or UUID; -1: none. */
int vm_disk_index(const struct vm_disk *disks, size_t nr, const char *name);
/* The target of the disk that NAME means now, or else meant in some snapshot; NULL: none. */
const char *vm_disk_target(const struct vm *vm, const char *name);
/* Whether NAME is the image of that disk, as above. */
bool vm_disk_has_image(const struct vm_disk *disk, const char *name);
const struct vm_disk *vm_disk_by_id(const struct vm_disk *disks, size_t nr, uint32_t id);

#endif
