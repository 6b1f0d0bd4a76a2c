#include "store/lineage.h"

#include <errno.h>
#include <stdlib.h>

#include "base/mem.h"
#include "store/found.h"
#include "store/vm_make.h"

#define NO_PARENT SIZE_MAX

struct lineage {
	struct vm *vm;
	size_t *parents; /* index of each one's parent, or NO_PARENT */
	size_t *firsts;	 /* by number of the written name: the first that bears it */
	struct intern written;
	struct intern taken;
};

static int note_names(struct lineage *l)
{
	for (size_t i = 0; i < l->vm->nr_snapshots; i++) {
		size_t known = l->written.nr_names;
		uint32_t number = intern_add(&l->written, l->vm->snapshots[i]->name);
		if (!number)
			return -ENOMEM;
		if (l->written.nr_names > known)
			l->firsts[number - 1] = i;
	}
	return 0;
}

static void find_parents(struct lineage *l)
{
	for (size_t i = 0; i < l->vm->nr_snapshots; i++) {
		const struct vm_snapshot *snapshot = l->vm->snapshots[i];
		uint32_t number = snapshot->parent ? intern_lookup(&l->written, snapshot->parent) : 0;
		size_t parent = number ? l->firsts[number - 1] : NO_PARENT;
		bool fits = number && l->vm->snapshots[parent]->created <= snapshot->created;
		l->parents[i] = fits ? parent : NO_PARENT;
	}
}

/* Of snapshots of the same second any may be the parent. Each walk up marks what it passes with its own number: who meets that again has
 * gone round, and loses its parent. */
static int cut_circles(struct lineage *l)
{
	size_t nr = l->vm->nr_snapshots;
	size_t *walks = mem_new_array(nr, sizeof *walks); /* 0: not passed yet */
	if (!walks)
		return -ENOMEM;
	for (size_t i = 0; i < nr; i++) {
		size_t at = i;
		while (at != NO_PARENT && !walks[at]) {
			walks[at] = i + 1;
			size_t parent = l->parents[at];
			if (parent != NO_PARENT && walks[parent] == i + 1)
				l->parents[at] = NO_PARENT;
			at = l->parents[at];
		}
	}
	free(walks);
	return 0;
}

static int set_names(struct lineage *l)
{
	for (size_t i = 0; i < l->vm->nr_snapshots; i++) {
		char *name = unique_name(&l->taken, l->vm->snapshots[i]->name);
		if (!name)
			return -ENOMEM;
		free(l->vm->snapshots[i]->name);
		l->vm->snapshots[i]->name = name;
	}
	for (size_t i = 0; i < l->vm->nr_snapshots; i++) {
		const char *parent = l->parents[i] == NO_PARENT ? NULL : l->vm->snapshots[l->parents[i]]->name;
		if (text_set(&l->vm->snapshots[i]->parent, parent))
			return -ENOMEM;
	}
	return 0;
}

int lineage_settle(struct vm *vm)
{
	struct lineage l = {.vm = vm};
	l.parents = mem_new_array(vm->nr_snapshots, sizeof *l.parents);
	l.firsts = mem_new_array(vm->nr_snapshots, sizeof *l.firsts);
	int err = l.parents && l.firsts ? note_names(&l) : -ENOMEM;
	if (!err) {
		find_parents(&l);
		err = cut_circles(&l);
	}
	if (!err)
		err = set_names(&l);
	free(l.parents);
	free(l.firsts);
	intern_done(&l.written);
	intern_done(&l.taken);
	return err;
}
