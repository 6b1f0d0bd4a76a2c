/* limit: 300 nightly: 1800
 * Domain XML: read, given other disks, another disk, another identity, and read again: what was to change has changed, the rest has not. Behind a NUL
 * come the strings that a user would give. */
#include <stdlib.h>

#include "common/texts.h"
#include "common/words.h"
#include "meta/domain.h"
#include "meta/domain_edit.h"

static const char new_uuid[] = "6ba7b810-9dad-41d1-80b4-00c04fd430c8";

static bool is_ours(const struct domain_disk *disk)
{
	return disk->kind != DOMAIN_DISK_OTHER;
}

static const struct domain_disk *disk_at(const struct domain *domain, const char *target)
{
	for (size_t i = 0; i < domain->nr_disks; i++)
		if (strcmp(domain->disks[i].target, target) == 0)
			return &domain->disks[i];
	return NULL;
}

/* What was made must be a domain again. */
static void parse_made(const char *text, struct domain *ret)
{
	struct reason why = {""};
	check_xml(text);
	if (domain_parse_text(text, strlen(text), ret, &why) != 0)
		fuzz_fail("not a domain any more (%s): %s", why.text, text);
}

static void check_same_disks(const struct domain *a, const struct domain *b)
{
	FUZZ_CHECK(a->nr_disks == b->nr_disks);
	for (size_t i = 0; i < a->nr_disks; i++) {
		const struct domain_disk *x = &a->disks[i], *y = &b->disks[i];
		FUZZ_CHECK(same_text(x->target, y->target) && same_text(x->path, y->path) && same_text(x->format, y->format) && x->kind == y->kind);
		FUZZ_CHECK(x->shareable == y->shareable && x->readonly == y->readonly && x->encrypted == y->encrypted);
	}
}

#define FILES_MAX 64u

static void render(const struct words *w, const struct domain *domain)
{
	struct domain_disk_file files[FILES_MAX];
	size_t nr = 0;
	for (size_t i = 0; i < domain->nr_disks && nr < FILES_MAX - 1; i++)
		if (is_ours(&domain->disks[i]) && i % 5 != 4)
			files[nr++] = (struct domain_disk_file){domain->disks[i].target, "/store/some & <file>.qcow2", i % 2 ? "raw" : "qcow2", i % 3 == 2};
	if (*w->more[0])
		files[nr++] = (struct domain_disk_file){w->more[0], *w->more[1] ? w->more[1] : "/store/new.img", "raw", false};
	const char *name = *w->more[2] ? w->more[2] : NULL, *uuid = nr % 2 ? new_uuid : NULL;
	char *text = NULL;
	struct domain made;
	struct reason why = {""};
	if (domain_render(w->text, w->len, name, uuid, files, nr, &text, &why) != 0)
		return;
	parse_made(text, &made);
	FUZZ_CHECK(same_text(made.name, name ? name : domain->name) && (uuid ? made.uuid && domain_uuid_equal(made.uuid, uuid) : same_text(made.uuid, domain->uuid)));
	size_t nr_ours = 0;
	for (size_t i = 0; i < made.nr_disks; i++)
		nr_ours += is_ours(&made.disks[i]);
	FUZZ_CHECK(nr_ours == nr);
	for (size_t i = 0; i < nr; i++) {
		const struct domain_disk *disk = disk_at(&made, files[i].target);
		FUZZ_CHECK(disk && same_text(disk->path, files[i].path) && same_text(disk->format, files[i].format));
		FUZZ_CHECK(disk->kind == (files[i].is_block ? DOMAIN_DISK_BLOCK : DOMAIN_DISK_FILE));
	}
	domain_done(&made);
	free(text);
}

static void change_identity(const struct words *w, const struct domain *domain)
{
	const char *name = *w->more[0] ? w->more[0] : "clone of it";
	char *text = NULL, *notes = NULL;
	struct domain made;
	struct reason why = {""};
	if (domain_clone_identity(w->text, w->len, name, new_uuid, "/store/nvram & more.fd", &text, &notes, &why) != 0)
		return;
	parse_made(text, &made);
	/* One that had the same, in capitals, keeps it. */
	FUZZ_CHECK(same_text(made.name, name) && made.uuid && domain_uuid_equal(made.uuid, new_uuid) && notes && !made.title);
	FUZZ_CHECK(!made.nvram || same_text(made.nvram, "/store/nvram & more.fd"));
	check_same_disks(domain, &made);
	domain_done(&made);
	free(text);
	free(notes);
}

static void change_disk(const struct words *w, const struct domain *domain, const struct domain_disk *disk)
{
	static const char *const buses[] = {"virtio", "scsi", "sata", "ide", "usb", "xen", "sd", NULL};
	const char *target = *w->more[0] ? w->more[0] : NULL, *bus = *w->more[1] ? w->more[1] : buses[w->len % 8];
	char *text = NULL;
	struct domain made;
	struct reason why = {""};
	if (domain_change_disk(w->text, w->len, disk->target, target, bus, w->len & 8, &text, &why) != 0)
		return;
	parse_made(text, &made);
	const struct domain_disk *changed = disk_at(&made, target ? target : disk->target);
	FUZZ_CHECK(made.nr_disks == domain->nr_disks && changed && same_text(changed->path, disk->path));
	FUZZ_CHECK(same_text(made.name, domain->name) && same_text(made.uuid, domain->uuid));
	domain_done(&made);
	free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct domain domain;
	struct reason why = {""};
	struct words w = words_of(data, size);
	fuzz_begin(WORDS_MEMORY_MAX, 0, 0);
	int err = domain_parse_text(w.text, w.len, &domain, &why);
	FUZZ_CHECK(err ? err < 0 && why.text[0] : domain.name && *domain.name);
	if (!err) {
		render(&w, &domain);
		change_identity(&w, &domain);
		for (size_t i = 0; i < domain.nr_disks && i < 3; i++)
			change_disk(&w, &domain, &domain.disks[i]);
		domain_done(&domain);
	}
	fuzz_end();
	free(w.all);
	return 0;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed)
{
	return texts_mutate(data, 0, size, max_size, seed);
}
