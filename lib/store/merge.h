/* Merging: layers that are needed only by the one above become one with it, in the background, so that the space of deleted snapshots
 * comes back and chains get shorter. Nobody reads another byte than before, at any moment.
 *
 * A run is a layer C that others need too (a snapshot, a head, several layers) and what lies below it up to a layer that others need:
 * U1..Uk, over B. The one of them with most data, D, takes up the rest:
 *   pull   what U's below D have and D lacks is copied into D; then D's header names B. Whoever reads through D reads the same before and
 *          after, and a crash in between leaves a D with some more of what it showed anyway.
 *   push   what C and the U's above D have is written into D; then D's file takes C's name: what names C, headers and vm.xml, stays as it is.
 *          All who read through D read through C first, which hides what is written. A crash in between leaves it hidden.
 * So a merge needs no record: it is planned anew from what the store holds, and begun from the start.
 *
 * Only what is frozen is pushed: a head gets a new overlay on top first, what it wrote before is pushed while it is in use, that again with
 * what was written meanwhile, and the small rest with the gate closed; the last overlay on top is empty when D takes its name. Each of these
 * takes the name that the disk has, and what it lies over a new one: vm.xml, and a domain that libvirt knows, name the disk as before.
 *
 * What a view of a deleted snapshot still reads is pinned by its top layer. Where somebody reads D without C, C takes up all instead: another program, or one
 * of us who has had a disk open since before it was made independent of D. Where D is a raw file that is to become the disk, the job waits. While D is
 * pushed into, nobody else gets to open it. Where one writes, the job waits.
 * Raw layers, files that aren't the store's, disks that are still being copied, and the state before a preview are let alone. */
#ifndef STORE_MERGE_H
#define STORE_MERGE_H

struct store;

/* Adds a job for each run that there is; for those that were cancelled, see layers_resume_runs(). layers_sweep() does, and the start. */
void merges_plan(struct store *store);

#endif
