/* Where to mount: a directory that doesn't make us wait for ourselves, and that no dead mount lies on. */
#ifndef FS_MOUNTPOINT_H
#define FS_MOUNTPOINT_H

/* Makes *PATH absolute and real. A mount whose daemon has died is unmounted. Refused, with words on stderr: what isn't a directory, or lies
 * in or above SOURCE_DIR or STORE_DIR. */
int mountpoint_prepare(char **path, const char *source_dir, const char *store_dir);

/* -EINVAL, with words, where PATH lies in or above DIR, a WHAT. */
int mountpoint_check_apart(const char *path, const char *what, const char *dir);

/* Takes the mount off PATH, a real path, also while somebody uses it; as a user, by fusermount3. */
int mountpoint_unmount(const char *path);

#endif
