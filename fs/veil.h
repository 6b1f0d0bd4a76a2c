/* Names of a managed VM that are hidden for a while, though what they name is always there.
 *
 * A VM made by mkdir has its folders and its domain.xml from the start; a program that copies a tree makes each of them without looking,
 * and would fail on those that are there. So they are hidden from the process that made the VM by copying, until it makes
 * them, or has done nothing there for a minute. Nobody else sees a difference.
 *
 * rm -r removes a directory's children first. Service files can't be removed: the unlink succeeds and hides the name from all; if
 * the VM isn't removed as well they show again after 10 s. Safe from any thread. */
#ifndef FS_VEIL_H
#define FS_VEIL_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "fs/node.h"

struct veil;

/* What hides: a kind, or one of the files in actions/. */
static inline unsigned veil_name(struct node node)
{
	return node.kind == NODE_ACTION ? NODE_KINDS + node.disk : node.kind;
}

int veil_new(struct veil **ret);
void veil_free(struct veil *veil);

/* Hides VM's names from the process of MAKER. */
void veil_cover(struct veil *veil, uint32_t vm, pid_t maker);
/* The process is still at it: what was covered stays so. */
void veil_touch(struct veil *veil, uint32_t vm);
/* NAME was removed: hides it from all. */
void veil_remove(struct veil *veil, uint32_t vm, unsigned name);
/* NAME was made: shows it to all. */
void veil_lift(struct veil *veil, uint32_t vm, unsigned name);

/* Whether the process of THREAD has made VM by copying, and is still at it. */
bool veil_is_maker(struct veil *veil, uint32_t vm, pid_t thread);

/* Whether THREAD doesn't see NAME; 0: a caller from whom only removed names are hidden. */
bool veil_hides(struct veil *veil, uint32_t vm, unsigned name, pid_t thread);

#endif
