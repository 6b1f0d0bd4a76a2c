/* What the headers of images say of other files: kept from one look at SOURCE to the next, read again when a file has changed. */
#ifndef STORE_IMAGE_FACTS_H
#define STORE_IMAGE_FACTS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "block/image.h"
#include "store/intern.h"

struct store;

/* What an image opened in a certain format says of other files. */
struct image_fact {
	char *path; /* real */
	char *named; /* as it was named first: relative names in its header start from there */
	enum image_format format;
	uint64_t stamp;
	int err; /* of opening it, with the reason */
	char *error_text;
	char *backing; /* real path; NULL: none, or not one that may be opened */
	char *backing_named;
	enum image_format backing_format;
	char *data;
	bool visited; /* scratch */
};

/* In order of arrival; a path in two formats is two facts. */
struct fact_table {
	struct intern keys;
	struct image_fact *facts; /* facts[key - 1] */
	size_t nr_facts, cap_facts;
};

struct image_facts {
	struct fact_table known; /* of the last look */
	bool any_unread;	 /* in that, see fact_note_unread() */
};

int image_facts_new(struct image_facts **ret);
void image_facts_free(struct image_facts *facts);

/* One look. */
struct fact_scan {
	struct store *store;
	struct fact_table *known; /* of the last look: what is still true is moved out of it */
	struct fact_table now;
	bool any_unread;
};

/* Ends the look: what it has found is what is known. */
void fact_scan_done(struct fact_scan *scan, struct image_facts *facts);

/* The number of the fact about PATH (NAMED) read as FORMAT, taken over from the last look or read; negative errno, -ECANCELED
 * when the store is being closed. */
ssize_t fact_get(struct fact_scan *scan, const char *path, const char *named, enum image_format format);

/* FACT's file couldn't be read: ERR. If that says nothing of the file it isn't true any more at the next look. */
void fact_note_unread(struct fact_scan *scan, struct image_fact *fact, int err);

/* The fact about what lies beneath fact I; negative: nothing that can be followed. */
ssize_t fact_below(struct fact_scan *scan, size_t i);

/* Whether a fact about PATH, in whatever format, is marked as visited. */
bool fact_is_visited(struct fact_scan *scan, const char *path);
void fact_unvisit_all(struct fact_scan *scan);

#endif
