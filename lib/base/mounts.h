/* Where mounts of vmsnapfs lie: nothing in SOURCE or in an image's name leads into one, neither into our own, by whatever path, nor into
 * another one, which may lead back: each would wait for itself. */
#ifndef BASE_MOUNTS_H
#define BASE_MOUNTS_H

#include <stdbool.h>
#include <sys/types.h>

/* Whether what lies at NAME, relative to the directory AT, is such a mount. AROUND is the device of the directory that holds it: nothing is
 * asked of the mount. */
bool mounts_lies_on(int at, const char *name, dev_t around);

#endif
