/* limit: 300 nightly: 1800
 * <domainsnapshot> XML: read, made public, its <domain> taken out, written anew and read again. */
#include <stdlib.h>

#include "common/texts.h"
#include "common/words.h"
#include "meta/domsnapshot.h"

static void parse_made(const char *text, struct domsnapshot *ret)
{
	struct reason why = {""};
	check_xml(text);
	if (domsnapshot_parse_text(text, strlen(text), ret, &why) != 0)
		fuzz_fail("not a snapshot any more (%s): %s", why.text, text);
}

static void check_same(const struct domsnapshot *a, const struct domsnapshot *b)
{
	FUZZ_CHECK(same_words(a->name, b->name) && same_words(a->description, b->description) && same_words(a->state, b->state));
	FUZZ_CHECK(same_words(a->parent, b->parent) && a->created == b->created && a->memory == b->memory && same_text(a->memory_file, b->memory_file));
}

static void check_same_disks(const struct domsnapshot *a, const struct domsnapshot *b)
{
	FUZZ_CHECK(a->nr_disks == b->nr_disks);
	for (size_t i = 0; i < a->nr_disks; i++)
		FUZZ_CHECK(same_text(a->disks[i].name, b->disks[i].name) && a->disks[i].location == b->disks[i].location);
	for (size_t i = 0; a->has_domain && i < a->domain.nr_disks; i++) {
		const char *target = a->domain.disks[i].target;
		FUZZ_CHECK(domsnapshot_disk_location(a, target) == domsnapshot_disk_location(b, target));
	}
}

static void make_public(const struct words *w, const struct domsnapshot *s)
{
	char *text = NULL;
	struct domsnapshot made;
	struct reason why = {""};
	if (domsnapshot_public_text(w->text, w->len, &text, &why) != 0)
		return;
	parse_made(text, &made);
	check_same(s, &made);
	check_same_disks(s, &made);
	FUZZ_CHECK(!made.active);
	domsnapshot_done(&made);
	free(text);
}

static void render(const struct domsnapshot *s, const char *domain)
{
	struct domsnapshot_spec spec = {
		.name = s->name,
		.description = s->description,
		.state = s->state ? s->state : "shutoff",
		.parent = s->parent,
		.created = s->created,
		.has_memory = s->memory != DOMSNAPSHOT_NONE,
		.memory_file = s->memory_file,
		.disks = s->disks,
		.nr_disks = s->nr_disks,
		.domain_text = domain,
	};
	char *text = NULL;
	struct domsnapshot made;
	if (domsnapshot_render(&spec, &text) != 0)
		return;
	parse_made(text, &made);
	FUZZ_CHECK(same_text(s->name, made.name) && same_text(s->parent, made.parent) && same_text(spec.state, made.state));
	FUZZ_CHECK(made.has_domain == (domain != NULL));
	bool is_said = s->memory != DOMSNAPSHOT_EXTERNAL || s->memory_file; /* external, and not where: libvirt takes no such thing */
	if (domain && s->nr_disks && is_said)
		check_same_disks(s, &made);
	domsnapshot_done(&made);
	free(text);
}

static void take_domain(const struct words *w, const struct domsnapshot *s)
{
	char *text = NULL;
	struct domain domain;
	struct reason why = {""};
	int err = domsnapshot_domain_text(w->text, w->len, &text, &why);
	FUZZ_CHECK(s->has_domain == (err == 0));
	render(s, text);
	if (err)
		return;
	check_xml(text);
	if (domain_parse_text(text, strlen(text), &domain, &why) != 0)
		fuzz_fail("not a domain (%s): %s", why.text, text);
	FUZZ_CHECK(same_words(domain.name, s->domain.name) && same_words(domain.uuid, s->domain.uuid) && domain.nr_disks == s->domain.nr_disks);
	domain_done(&domain);
	free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct domsnapshot s;
	struct reason why = {""};
	struct words w = words_of(data, size);
	fuzz_begin(WORDS_MEMORY_MAX, 0, 0);
	int err = domsnapshot_parse_text(w.text, w.len, &s, &why);
	FUZZ_CHECK(err ? err < 0 && why.text[0] : s.name && *s.name);
	if (!err) {
		make_public(&w, &s);
		take_domain(&w, &s);
		domsnapshot_done(&s);
	}
	fuzz_end();
	free(w.all);
	return 0;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed)
{
	return texts_mutate(data, 0, size, max_size, seed);
}
