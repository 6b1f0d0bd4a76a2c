#include "fs/sources.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fs/callers.h"
#include "fs/clock.h"

#define SOURCES	  32
#define RECENT_MS 60000

struct source {
	struct disk_file *file; /* NULL: free */
	char name[256];
	pid_t process;
	int64_t opened_ms;
};

struct sources {
	pthread_mutex_t lock; /* held while a source is used, so that it isn't closed meanwhile */
	/* protected by lock */
	struct source sources[SOURCES];
};

int sources_new(struct sources **ret)
{
	struct sources *sources = calloc(1, sizeof *sources);
	if (!sources)
		return -ENOMEM;
	pthread_mutex_init(&sources->lock, NULL);
	*ret = sources;
	return 0;
}

void sources_free(struct sources *sources)
{
	if (!sources)
		return;
	pthread_mutex_destroy(&sources->lock);
	free(sources);
}

void sources_add(struct sources *sources, struct disk_file *file, const char *name, pid_t thread)
{
	pid_t process = callers_process(thread);
	pthread_mutex_lock(&sources->lock);
	struct source *slot = &sources->sources[0];
	for (struct source *s = sources->sources; s < sources->sources + SOURCES && slot->file; s++)
		if (!s->file || s->opened_ms < slot->opened_ms)
			slot = s;
	slot->file = file;
	slot->process = process;
	slot->opened_ms = clock_ms();
	snprintf(slot->name, sizeof slot->name, "%s", name);
	pthread_mutex_unlock(&sources->lock);
}

void sources_remove(struct sources *sources, struct disk_file *file)
{
	pthread_mutex_lock(&sources->lock);
	for (struct source *s = sources->sources; s < sources->sources + SOURCES; s++)
		if (s->file == file)
			s->file = NULL;
	pthread_mutex_unlock(&sources->lock);
}

/* Whether NAME is that of the source, or rsync's temporary name for it. */
static bool name_matches(const char *name, const char *source_name)
{
	size_t len = strlen(source_name);
	if (!strcmp(name, source_name))
		return true;
	return name[0] == '.' && !strncmp(name + 1, source_name, len) && name[1 + len] == '.' && strlen(name + len + 2) == 6;
}

/* How likely S is what is being copied; 0: not at all. */
static int likelihood(const struct source *s, const char *name, pid_t process, int64_t now)
{
	bool same_name = name_matches(name, s->name);
	if (!s->file)
		return 0;
	if (process && s->process == process)
		return same_name ? 3 : 2;
	return same_name && now - s->opened_ms < RECENT_MS ? 1 : 0;
}

void sources_hint(struct sources *sources, struct disk_file *to, const char *name, pid_t thread)
{
	pid_t process = callers_process(thread);
	int64_t now = clock_ms();
	struct source *best = NULL;
	int best_likelihood = 0;
	pthread_mutex_lock(&sources->lock);
	for (struct source *s = sources->sources; s < sources->sources + SOURCES; s++) {
		int l = likelihood(s, name, process, now);
		if (l > best_likelihood || (l && l == best_likelihood && s->opened_ms >= best->opened_ms)) {
			best = s;
			best_likelihood = l;
		}
	}
	if (best)
		disk_hint_source(to, best->file);
	pthread_mutex_unlock(&sources->lock);
}
