/* What libvirt.c and bare.c make found VMs of: references, complaints, names. */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <uuid/uuid.h>

#include "base/mem.h"
#include "base/name.h"
#include "store/found.h"

int file_refs_add(struct file_refs *refs, const char *path, enum image_format format)
{
	/* Internal snapshots name the same file over and over: what was named just before needn't be kept twice. */
	size_t from = refs->nr_refs > 8 ? refs->nr_refs - 8 : 0;
	for (size_t i = from; i < refs->nr_refs; i++)
		if (refs->refs[i].format == format && strcmp(refs->refs[i].path, path) == 0)
			return 0;
	if (mem_grow(&refs->refs, &refs->cap_refs, refs->nr_refs + 1, sizeof *refs->refs) < 0)
		return -ENOMEM;
	struct file_ref *ref = &refs->refs[refs->nr_refs];
	*ref = (struct file_ref){.path = strdup(path), .format = format};
	if (!ref->path)
		return -ENOMEM;
	refs->nr_refs++;
	return 0;
}

void file_refs_done(struct file_refs *refs)
{
	for (size_t i = 0; i < refs->nr_refs; i++)
		free(refs->refs[i].path);
	free(refs->refs);
	*refs = (struct file_refs){0};
}

void found_vm_done(struct found_vm *found)
{
	free(found->path);
	free(found->complaint);
	vm_put(found->vm);
	vm_put(found->shown);
	file_refs_done(&found->refs);
	file_refs_done(&found->snapshot_refs);
	*found = (struct found_vm){0};
}

void complain(struct strbuf *complaint, const char *fmt, ...)
{
	char *line = NULL;
	va_list ap;
	va_start(ap, fmt);
	if (vasprintf(&line, fmt, ap) < 0)
		line = NULL;
	va_end(ap);
	strbuf_addf(complaint, "%s%s", complaint->len ? "\n" : "", line ? line : "out of memory");
	free(line);
}

char *unique_name(struct intern *taken, const char *name)
{
	char *valid = name_make_valid(name);
	for (unsigned n = 2; valid; n++) {
		size_t known = taken->nr_names;
		if (!intern_add(taken, valid)) {
			free(take_ptr(valid));
		} else if (taken->nr_names > known) {
			return valid;
		} else {
			auto_free char *base = name_make_valid(name);
			free(take_ptr(valid));
			/* Room for the number, and no character cut in two. */
			size_t len = base ? strlen(base) : 0;
			for (len = len > 240 ? 240 : len; len && ((unsigned char)base[len] & 0xc0) == 0x80;)
				len--;
			if (base && asprintf(&valid, "%.*s~%u", (int)len, base, n) < 0)
				valid = NULL;
		}
	}
	return NULL;
}

char *uuid_of_path(const char *path)
{
	uuid_t uuid;
	char text[37];
	uuid_generate_sha1(uuid, *uuid_get_template("url"), path, strlen(path));
	uuid_unparse_lower(uuid, text);
	return strdup(text);
}
