/* What is written into actions/clone, carried out: a VM or a volume made of a snapshot. */
#ifndef FS_CONTROL_CLONE_H
#define FS_CONTROL_CLONE_H

#include <fuse_lowlevel.h>

#include "base/reason.h"

struct action;
struct vm;

/* ACTION is an ACTION_CLONE. FROM is whole, found or managed. The caller owns what is made, and must be one who may read the source. */
int control_clone(fuse_req_t req, struct vm *from, const struct action *action, struct reason *why);

#endif
