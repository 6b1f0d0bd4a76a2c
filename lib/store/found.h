/* Found VMs: what lies in SOURCE, read again when it changes.
 *
 * A look lists the directories and reads what is new of domain XML and bare images; the snapshots of libvirt VMs are read when somebody
 * looks at their VM (whole.h). Only where images lie in SOURCE that neither a domain nor another image names, the snapshots of all VMs must be
 * read before it is known which of these are VMs of their own: that is done bit by bit, and they are shown afterwards. */
#ifndef STORE_FOUND_H
#define STORE_FOUND_H

#include "base/strbuf.h"
#include "store/intern.h"
#include "store/source.h"
#include "store/vm_make.h"

struct found;
struct image_facts;
struct store;

int found_new(struct found **ret);
void found_free(struct found *found);

/* Reads SOURCE again if the last look is more than a second old and something changed. Who comes before the first look waits for it. */
void found_refresh(struct store *store);

/* Begins to read in the background. Ends with found_free(). */
int found_start(struct store *store);

/* The store is being closed: nobody waits for what is being read. */
bool found_is_ending(struct store *store);

/* --- for libvirt.c and bare.c ------------------------------------------------------------------------------------ */

/* A file that a VM's metadata names. */
struct file_ref {
	char *path;
	enum image_format format;
};

struct file_refs {
	struct file_ref *refs;
	size_t nr_refs, cap_refs;
};

int file_refs_add(struct file_refs *refs, const char *path, enum image_format format);
void file_refs_done(struct file_refs *refs);

/* A VM as it was read last, by the file that it stands for. */
struct found_vm {
	char *path;	   /* of the domain XML, or of the leaf image */
	uint64_t hash;	   /* of the stamps of all files that it was made from; not of libvirt's snapshot metadata */
	char *complaint;   /* what is wrong with it, in lines; NULL: nothing */
	struct vm *vm;	   /* its name: as it would be if there were no others */
	struct vm *shown;  /* the same under the name that it got; NULL: not shown yet */
	bool fresh;	   /* read in this look */
	struct file_refs refs;
	struct file_refs snapshot_refs; /* of libvirt VMs, where they were needed */
	uint64_t snapshot_refs_stamp;	/* metadata_stamp() of then; 0: not read */
};

void found_vm_done(struct found_vm *found);

/* Adds a line to a complaint. */
void complain(struct strbuf *complaint, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* NAME, or NAME~2, NAME~3 …, whichever TAKEN doesn't have; entered there. The caller frees. NULL: memory is out. */
char *unique_name(struct intern *taken, const char *name);

/* A UUID that stays the same for the same path (version 5): for what has none of its own. The caller frees. */
char *uuid_of_path(const char *path);

/* Reads a domain without its snapshots. RET's path and hash are the caller's to fill in. */
int libvirt_read(struct store *store, const struct source_file *file, struct found_vm *ret, struct reason *why);

/* The metadata of a libvirt VM's snapshots. */
struct metadata_files {
	struct source_file *files; /* in order of path */
	size_t nr_files, cap_files;
	uint64_t hash; /* changes when one of them does */
};

int metadata_list(struct store *store, const struct vm *vm, struct metadata_files *ret);
void metadata_files_done(struct metadata_files *files);

/* Changes when metadata come or go; 0: they came or went so lately that it doesn't tell. */
uint64_t metadata_stamp(struct store *store, const struct vm *vm);

/* The description with its snapshots, and what is wrong with them in lines (NULL: nothing). Adds the files that they name to REFS. */
int libvirt_read_snapshots(struct store *store, const struct vm *brief, const struct metadata_files *files, struct vm **ret,
			   struct file_refs *refs, char **ret_complaint);

/* What the snapshots of libvirt VMs name: asked for when images are left that nothing else names. *RET_ALL: nothing is missing. */
typedef int (*snapshot_refs_fn)(void *ctx, struct file_refs *refs, bool *ret_all);

/* Finds the bare images among SOURCE that NAMED (of libvirt VMs) and their snapshots don't refer to. OLD VMs that didn't change are moved out
 * of OLD; the rest is read. Appends to *VMS. While not all is known of the snapshots, no VMs are shown but those that were before. */
int bare_find(struct store *store, struct image_facts *facts, const struct source *source, const struct file_refs *named,
	      snapshot_refs_fn snapshot_refs, void *ctx, struct found_vm *old, size_t nr_old, struct found_vm **vms, size_t *nr_vms, size_t *cap_vms);

/* Whether NAME ends like an image's file. */
bool bare_is_image_name(const char *name);

#endif
