/* Names to small numbers that stay: 1, 2, … in order of arrival. Not locked. */
#ifndef STORE_INTERN_H
#define STORE_INTERN_H

#include <stddef.h>
#include <stdint.h>

struct intern {
	char **names; /* names[id - 1] */
	size_t nr_names, cap_names;
	uint32_t *slots; /* open addressing; 0: free */
	size_t nr_slots; /* a power of two, or 0 */
};

/* The number of NAME; 0: it has none. */
uint32_t intern_lookup(const struct intern *in, const char *name);

/* The same, giving it the next one where it has none; 0: memory is out. */
uint32_t intern_add(struct intern *in, const char *name);

/* Lets ID stand for NAME, which has no number, from now on. -ENOMEM. */
int intern_reuse(struct intern *in, uint32_t id, const char *name);

void intern_done(struct intern *in);

/* FNV-1a, for tables and for telling whether something changed. Start with HASH_START. */
#define HASH_START 0xcbf29ce484222325u
uint64_t hash_bytes(uint64_t hash, const void *bytes, size_t len);
uint64_t hash_text(uint64_t hash, const char *text);

#endif
