/* Found VMs: what lies in SOURCE, read again when it changes. */
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

/* Reads SOURCE again if the last look is more than a second old (or FORCE) and something changed. */
void found_refresh(struct store *store, bool force);

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
	uint64_t hash;	   /* of the stamps of all files that it was made from */
	char *domain_name; /* as libvirt spells it; NULL: a bare image */
	char *complaint;   /* what is wrong with it, in lines; NULL: nothing */
	struct vm *vm;	   /* its name: as it would be if there were no others */
	struct vm *shown;  /* the same under the name that it got; NULL: not shown yet */
	bool fresh;	   /* read in this look */
	struct file_refs refs;
};

void found_vm_done(struct found_vm *found);

/* Adds a line to a complaint. */
void complain(struct strbuf *complaint, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* NAME, or NAME~2, NAME~3 …, whichever TAKEN doesn't have; entered there. The caller frees. NULL: memory is out. */
char *unique_name(struct intern *taken, const char *name);

/* A UUID that stays the same for the same path (version 5): for what has none of its own. The caller frees. */
char *uuid_of_path(const char *path);

/* The hash of the files that the domain XML FILE of a domain NAME stands for: its own and its snapshots' metadata. */
uint64_t libvirt_hash(struct store *store, const struct source *source, const struct source_file *file, const char *name);

/* Reads a domain and its snapshots. RET's path and hash are the caller's to fill in. */
int libvirt_read(struct store *store, const struct source *source, const struct source_file *file, struct found_vm *ret,
		 struct reason *why);

/* Finds the bare images among SOURCE that NAMED (of libvirt VMs) doesn't refer to. OLD VMs that didn't change are moved out of OLD; the rest is
 * read. Appends to *VMS. */
int bare_find(struct store *store, struct image_facts *facts, const struct source *source, const struct file_refs *named,
	      struct found_vm *old, size_t nr_old, struct found_vm **vms, size_t *nr_vms, size_t *cap_vms);

/* Whether NAME ends like an image's file. */
bool bare_is_image_name(const char *name);

#endif
