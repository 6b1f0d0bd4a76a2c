/* Texts that are files: README.txt, domain.xml, snapshot.xml, status, jobs. */
#ifndef FS_TEXT_H
#define FS_TEXT_H

#include "base/reason.h"
#include "fs/place.h"

/* What the file holds now; the caller frees. From ACCESS (may be NULL) is taken what the files that it comes from don't grant. -EINVAL: PLACE is no such file. */
int text_load(struct fs *fs, const struct place *place, char **ret, size_t *ret_len, struct access *access, struct reason *why);

/* Only how long that is. */
int text_size(struct fs *fs, const struct place *place, size_t *ret_len);

/* Whether it is one. */
bool text_is(const struct place *place);

#endif
