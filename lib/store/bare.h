/* The inside of bare.c and bare_vm.c. */
#ifndef STORE_BARE_H
#define STORE_BARE_H

#include "store/found.h"
#include "store/image_facts.h"

/* The facts about the files of one chain, by number, top first. */
struct chain {
	size_t *facts;
	size_t nr_facts, cap_facts;
};

/* A VM made from the chain. RET's hash is the caller's to fill in; it is to be released also on failure. */
int bare_read(struct fact_scan *scan, const struct chain *chain, struct found_vm *ret);

/* The ending by which NAME is known as an image's; NULL: it isn't. */
const char *bare_image_ending(const char *name);

#endif
