/* Layers that a killed daemon left marked dirty while a job was writing into them: their refcounts lag, which readers don't mind and qemu-img check
 * does. The job that goes on with one mends it; where none does, because what it was for has gone, this one. A disk is mended when it is opened. */
#ifndef STORE_REPAIR_H
#define STORE_REPAIR_H

struct store;

/* At the start: a job for each. */
void repair_plan(struct store *store);

#endif
