/* Who of us reads an image under QEMU's locks, and who writes beside them. */
#include "block/image_priv.h"

#include <errno.h>
#include <sys/stat.h>

#define TRIES 3

static int take_locks(struct image *image, enum image_lock_kind kind, struct reason *why)
{
	int err = image_locks_take(image->fd, kind, image->path, why);
	if (!err && image->data_fd >= 0) {
		err = image_locks_take(image->data_fd, kind, image->data_path, why);
		if (err)
			image_locks_drop(image->fd);
	}
	return err;
}

static void drop_locks(struct image *image)
{
	image_locks_drop(image->fd);
	if (image->data_fd >= 0)
		image_locks_drop(image->data_fd);
}

static int lock_as(struct image *image, enum image_lock_kind kind, bool ours, struct reason *why)
{
	pthread_mutex_lock(&image->users_lock);
	unsigned *nr = kind == IMAGE_LOCK_READ ? &image->nr_readers : &image->nr_quiet;
	int err = 0;
	if (*nr == 0 && image->nr_readers == 0)
		err = take_locks(image, ours && kind == IMAGE_LOCK_READ ? IMAGE_LOCK_READ_OURS : kind, why);
	if (!err)
		++*nr;
	else if (image->nr_quiet)
		take_locks(image, IMAGE_LOCK_QUIET, NULL);
	pthread_mutex_unlock(&image->users_lock);
	return err;
}

int image_lock(struct image *image, enum image_lock_kind kind, struct reason *why)
{
	int err = -EBUSY;
	/* We may have begun to write into it just then, or have ended. */
	for (int i = 0; i < TRIES && err == -EBUSY; i++)
		err = lock_as(image, kind, image_is_written_by_us(image), why);
	return err;
}

void image_unlock(struct image *image, enum image_lock_kind kind)
{
	pthread_mutex_lock(&image->users_lock);
	--*(kind == IMAGE_LOCK_READ ? &image->nr_readers : &image->nr_quiet);
	if (image->nr_readers == 0) {
		drop_locks(image);
		if (image->nr_quiet)
			take_locks(image, IMAGE_LOCK_QUIET, NULL);
	}
	pthread_mutex_unlock(&image->users_lock);
}

/* The reader's locks of an image that has left the cache count as another program's. */
int image_claim(struct image_cache *cache, enum image_format format, int fd, const char *path, struct reason *why)
{
	struct stat st;
	if (fstat(fd, &st) < 0)
		return -errno;
	struct image *own = image_lookup(cache, &st, format);
	int err = image_locks_claim(fd, own ? own->fd : fd, format == IMAGE_RAW, path, why);
	image_put(own);
	return err;
}
