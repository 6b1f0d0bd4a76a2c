/* Which names VMs, snapshots and files may bear in the mount. */
#ifndef BASE_NAME_H
#define BASE_NAME_H

#include <stdbool.h>
#include <stddef.h>

/* 0; -EINVAL for an empty name, a leading dot, a slash, a control character or bytes that aren't UTF-8;
 * -ENAMETOOLONG past 255 bytes. */
int name_check(const char *name);

/* A copy of NAME that name_check accepts: what it would refuse becomes '_'. NULL when memory is out. */
char *name_make_valid(const char *name);

/* NAME without what rsync makes of it while it writes (".NAME.", six characters): a copy. NULL when memory is out. */
char *name_final(const char *name);

/* TEXT, of anybody's making, as a line that a terminal shows as what it is: what isn't UTF-8, control characters and those that
 * break lines or turn the direction of what follows are replaced. Its length stays. */
void name_make_printable(char *text);

#endif
