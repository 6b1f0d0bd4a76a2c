#include "base/mem.h"

#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

void mem_cleanup_free(void *p)
{
	free(*(void **)p);
}

void mem_cleanup_close(int *fd)
{
	if (*fd >= 0) {
		int saved = errno;
		close(*fd);
		errno = saved;
	}
}

int take_fd(int *fd)
{
	int taken = *fd;
	*fd = -1;
	return taken;
}

void *mem_new_array(size_t nr, size_t elem_size)
{
	return calloc(nr ? nr : 1, elem_size ? elem_size : 1);
}

int mem_grow(void *array_ptr, size_t *cap, size_t nr, size_t elem_size)
{
	if (nr <= *cap)
		return 0;
	size_t want = *cap ? *cap : 8;
	while (want < nr) {
		if (want > SIZE_MAX / 2)
			return -ENOMEM;
		want *= 2;
	}
	size_t bytes;
	if (__builtin_mul_overflow(want, elem_size, &bytes))
		return -ENOMEM;
	void *grown = realloc(*(void **)array_ptr, bytes);
	if (!grown)
		return -ENOMEM;
	memset((char *)grown + *cap * elem_size, 0, bytes - *cap * elem_size);
	*(void **)array_ptr = grown;
	*cap = want;
	return 0;
}
