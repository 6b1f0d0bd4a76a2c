#include "store/intern.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

uint64_t hash_bytes(uint64_t hash, const void *bytes, size_t len)
{
	const unsigned char *p = bytes;
	for (size_t i = 0; i < len; i++)
		hash = (hash ^ p[i]) * 0x100000001b3u;
	return hash;
}

/* The NUL counts: "a" and "b" don't hash as "ab". */
uint64_t hash_text(uint64_t hash, const char *text)
{
	return hash_bytes(hash, text, strlen(text) + 1);
}

/* The slot that holds NAME, or the free one where it would go. The table is never full. */
static size_t find_slot(const struct intern *in, const char *name)
{
	uint64_t hash = hash_text(HASH_START, name);
	size_t i = (size_t)(hash ^ hash >> 32) & (in->nr_slots - 1);
	while (in->slots[i] && strcmp(in->names[in->slots[i] - 1], name) != 0)
		i = (i + 1) & (in->nr_slots - 1);
	return i;
}

static int rehash(struct intern *in, size_t nr_slots)
{
	uint32_t *slots = mem_new_array(nr_slots, sizeof *slots);
	if (!slots)
		return -ENOMEM;
	free(in->slots);
	in->slots = slots;
	in->nr_slots = nr_slots;
	for (size_t i = 0; i < in->nr_names; i++)
		in->slots[find_slot(in, in->names[i])] = (uint32_t)i + 1;
	return 0;
}

uint32_t intern_lookup(const struct intern *in, const char *name)
{
	return in->nr_slots ? in->slots[find_slot(in, name)] : 0;
}

uint32_t intern_add(struct intern *in, const char *name)
{
	uint32_t id = intern_lookup(in, name);
	if (id)
		return id;
	if (in->nr_names >= UINT32_MAX - 1 || mem_grow(&in->names, &in->cap_names, in->nr_names + 1, sizeof *in->names) < 0)
		return 0;
	if (in->nr_names + 1 > in->nr_slots / 2 && rehash(in, in->nr_slots ? in->nr_slots * 2 : 8) < 0)
		return 0;
	char *copy = strdup(name);
	if (!copy)
		return 0;
	in->slots[find_slot(in, name)] = (uint32_t)in->nr_names + 1;
	in->names[in->nr_names++] = copy;
	return (uint32_t)in->nr_names;
}

int intern_reuse(struct intern *in, uint32_t id, const char *name)
{
	char *copy = strdup(name);
	if (!copy)
		return -ENOMEM;
	char *old = in->names[id - 1];
	in->names[id - 1] = copy;
	int err = rehash(in, in->nr_slots);
	if (err) {
		in->names[id - 1] = old;
		free(copy);
		return err;
	}
	free(old);
	return 0;
}

void intern_done(struct intern *in)
{
	for (size_t i = 0; i < in->nr_names; i++)
		free(in->names[i]);
	free(in->names);
	free(in->slots);
	*in = (struct intern){0};
}
