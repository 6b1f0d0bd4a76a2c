/* dirpage DIR COMMAND: reads half of DIR, runs COMMAND, which adds and removes files there, and reads the rest. What was there all the time
 * must have been listed once and nothing twice; and whoever goes back to a position that telldir(3) gave finds there what came after it. */
#include <dirent.h>
#include <err.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct name {
	char *text;
	long pos; /* behind it */
};

struct names {
	struct name *names;
	size_t nr_names;
};

static int by_text(const void *a, const void *b)
{
	return strcmp(((const struct name *)a)->text, ((const struct name *)b)->text);
}

/* At most MAX of them. */
static void read_names(DIR *dir, size_t max, struct names *to)
{
	struct dirent *de;
	for (size_t i = 0; i < max && (de = readdir(dir)); i++) {
		to->names = realloc(to->names, (to->nr_names + 1) * sizeof *to->names);
		if (!to->names)
			err(1, "realloc");
		to->names[to->nr_names++] = (struct name){.text = strdup(de->d_name), .pos = telldir(dir)};
	}
}

static struct names read_all(const char *path)
{
	struct names names = {0};
	DIR *dir = opendir(path);
	if (!dir)
		err(1, "%s", path);
	read_names(dir, SIZE_MAX, &names);
	closedir(dir);
	qsort(names.names, names.nr_names, sizeof *names.names, by_text);
	return names;
}

static void names_done(struct names *names)
{
	for (size_t i = 0; i < names->nr_names; i++)
		free(names->names[i].text);
	free(names->names);
}

static bool holds(const struct names *sorted, const char *text)
{
	struct name key = {.text = (char *)text};
	return bsearch(&key, sorted->names, sorted->nr_names, sizeof key, by_text);
}

static void check_positions(DIR *dir, const struct names *listed, const struct names *after)
{
	for (size_t tries = 0; tries < 300; tries++) {
		size_t i = (size_t)rand() % (listed->nr_names - 1), next = i + 1;
		seekdir(dir, listed->names[i].pos);
		struct dirent *de = readdir(dir);
		while (next < listed->nr_names && !holds(after, listed->names[next].text))
			next++; /* removed since */
		if (next < listed->nr_names && (!de || strcmp(de->d_name, listed->names[next].text)))
			errx(1, "after %s comes %s, not %s", listed->names[i].text, de ? de->d_name : "nothing", listed->names[next].text);
	}
}

int main(int argc, char **argv)
{
	if (argc != 3)
		errx(1, "usage: dirpage DIR COMMAND");
	struct names before = read_all(argv[1]), listed = {0};
	DIR *dir = opendir(argv[1]);
	if (!dir)
		err(1, "%s", argv[1]);
	read_names(dir, before.nr_names / 2, &listed);
	if (system(argv[2]))
		errx(1, "failed: %s", argv[2]);
	read_names(dir, SIZE_MAX, &listed);
	struct names after = read_all(argv[1]), sorted = {malloc(listed.nr_names * sizeof *sorted.names), listed.nr_names};
	memcpy(sorted.names, listed.names, listed.nr_names * sizeof *sorted.names);
	qsort(sorted.names, sorted.nr_names, sizeof *sorted.names, by_text);
	for (size_t i = 1; i < sorted.nr_names; i++)
		if (!strcmp(sorted.names[i - 1].text, sorted.names[i].text))
			errx(1, "%s was listed twice", sorted.names[i].text);
	for (size_t i = 0; i < before.nr_names; i++)
		if (holds(&after, before.names[i].text) && !holds(&sorted, before.names[i].text))
			errx(1, "%s wasn't listed", before.names[i].text);
	check_positions(dir, &listed, &after);
	printf("%zu before, %zu listed, %zu after\n", before.nr_names, listed.nr_names, after.nr_names);
	closedir(dir);
	free(sorted.names); /* the texts are those of listed */
	names_done(&before);
	names_done(&listed);
	names_done(&after);
	return 0;
}
