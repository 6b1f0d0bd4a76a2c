/* Names for steps: the stacks are kept as they are, and one run of addr2line afterwards tells which functions, inlined ones too, they are made of. */
#include <execinfo.h>
#include <link.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "disk_priv.h"

extern char __executable_start[], etext[];

unsigned stack_here(void)
{
	void *frames[64];
	struct disk_stack stack = {0};
	int nr = backtrace(frames, 64);
	for (int i = 0; i < nr && stack.nr < FRAMES_MAX; i++) {
		char *at = frames[i];
		if (at > __executable_start && at <= etext) /* the byte before is in the call's instruction */
			stack.frames[stack.nr++] = (uint32_t)(at - 1 - __executable_start);
	}
	unsigned i = 0;
	while (i < disk_shared->nr_stacks && memcmp(&disk_shared->stacks[i], &stack, sizeof stack) != 0)
		i++;
	if (i == disk_shared->nr_stacks) {
		if (i == STACKS_MAX)
			return NO_STACK;
		disk_shared->stacks[i] = stack;
		disk_shared->nr_stacks++;
	}
	return i;
}

/* --- symbols ------------------------------------------------------------------------------------------------------------- */

/* A place in the program, and the functions that it lies in, the innermost first: "file.c:function\n" each. */
struct place {
	uint32_t at;
	char *functions;
};
static struct place *places;
static size_t nr_places;

static const char *functions_at(uint32_t at)
{
	for (size_t i = 0; i < nr_places; i++)
		if (places[i].at == at)
			return places[i].functions;
	return NULL;
}

static int first_object(struct dl_phdr_info *info, size_t size, void *ret_bias)
{
	(void)size;
	*(uintptr_t *)ret_bias = info->dlpi_addr;
	return 1;
}

static void *must(void *p)
{
	if (!p)
		abort();
	return p;
}

static void add_function(struct place *place, char *function, char *file)
{
	file[strcspn(file, ":")] = '\0';
	char *base = strrchr(file, '/'), *more = NULL;
	if (asprintf(&more, "%s%s:%s\n", place->functions, base ? base + 1 : file, function) < 0)
		abort();
	free(place->functions);
	place->functions = more;
}

/* Finds the functions of the places from FIRST on. */
static void ask(size_t first)
{
	char exe[4096], cmd[4400], line[4096], file[4096];
	uintptr_t bias = 0;
	ssize_t len = readlink("/proc/self/exe", exe, sizeof exe - 1);
	int list = memfd_create("places", 0);
	if (len < 0 || list < 0)
		abort();
	exe[len] = '\0';
	dl_iterate_phdr(first_object, &bias);
	for (size_t i = first; i < nr_places; i++)
		dprintf(list, "%#lx\n", (unsigned long)((uintptr_t)__executable_start - bias + places[i].at));
	snprintf(cmd, sizeof cmd, "addr2line -afi -e '%s' </proc/%d/fd/%d", exe, (int)getpid(), list);
	FILE *answer = must(popen(cmd, "r"));
	size_t i = first;
	while (fgets(line, sizeof line, answer)) {
		line[strcspn(line, "\n")] = '\0';
		if (strncmp(line, "0x", 2) == 0) /* the place itself, before what is said of it */
			i++;
		else if (i > first && i <= nr_places && fgets(file, sizeof file, answer))
			add_function(&places[i - 1], line, file);
	}
	if (pclose(answer) != 0 || i != nr_places) {
		printf("addr2line doesn't tell the steps' names\n");
		exit(2);
	}
	close(list);
}

static void learn_places(void)
{
	size_t first = nr_places;
	for (unsigned s = 0; s < disk_shared->nr_stacks; s++)
		for (unsigned f = 0; f < disk_shared->stacks[s].nr; f++) {
			uint32_t at = disk_shared->stacks[s].frames[f];
			if (functions_at(at))
				continue;
			places = must(realloc(places, (nr_places + 1) * sizeof *places));
			places[nr_places++] = (struct place){at, must(strdup(""))};
		}
	if (nr_places > first)
		ask(first);
}

static const char *step_of(const char *qualified)
{
	const char *function = strchr(qualified, ':') + 1;
	for (const struct step_name *n = step_names; n->function; n++)
		if (strcmp(n->function, function) == 0 || strcmp(n->function, qualified) == 0)
			return n->step;
	return NULL;
}

static bool is_context(const char *step)
{
	return step[strlen(step) - 1] == '/';
}

/* Into NAME: the innermost step, and before it what it is a part of. */
static bool find_name(const struct disk_stack *stack, char name[200])
{
	char function[300], context[100] = "";
	const char *found = NULL;
	for (unsigned f = 0; f < stack->nr; f++)
		for (const char *p = functions_at(stack->frames[f]); p && *p; p = strchr(p, '\n') + 1) {
			snprintf(function, sizeof function, "%.*s", (int)strcspn(p, "\n"), p);
			const char *step = step_of(function);
			if (step && is_context(step) && !*context)
				snprintf(context, sizeof context, "%s", step);
			else if (step && !is_context(step) && !found)
				found = step;
		}
	if (!found && *context) /* nothing more is known of it */
		context[strlen(context) - 1] = '\0';
	snprintf(name, 200, "%s%s", context, found ? found : "");
	return *name;
}

static void tell_unnamed(const struct disk_stack *stack)
{
	printf("a step that tests/fault/common/steps.c doesn't name:\n");
	for (unsigned f = 0; f < stack->nr; f++)
		if (strncmp(functions_at(stack->frames[f]), "matrix.c", 8) != 0)
			printf("%s", functions_at(stack->frames[f]));
}

const char *stack_step_name(unsigned stack, enum disk_op op)
{
	static char *names[STACKS_MAX][NR_DISK_OPS];
	static unsigned nr_known;
	if (stack >= disk_shared->nr_stacks)
		return "unnamed";
	if (disk_shared->nr_stacks > nr_known) {
		learn_places();
		nr_known = disk_shared->nr_stacks;
	}
	if (!names[stack][op]) {
		char step[200];
		bool named = find_name(&disk_shared->stacks[stack], step);
		if (!named)
			tell_unnamed(&disk_shared->stacks[stack]);
		if (!named)
			names[stack][op] = must(strdup("unnamed"));
		else if (asprintf(&names[stack][op], "%s: %s", step, disk_op_names[op]) < 0)
			abort();
	}
	return names[stack][op];
}
