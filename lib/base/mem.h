/* Ownership helpers: what is declared with auto_* is released when its scope ends; take_* hands it on. */
#ifndef BASE_MEM_H
#define BASE_MEM_H

#include <stddef.h>
#include <stdlib.h>

void mem_cleanup_free(void *p);
void mem_cleanup_close(int *fd);

#define auto_free __attribute__((cleanup(mem_cleanup_free)))
#define auto_close __attribute__((cleanup(mem_cleanup_close)))

/* Returns the pointer and leaves NULL behind: ownership moves. */
#define take_ptr(p) \
	({ \
		__typeof__(p) taken_ = (p); \
		(p) = NULL; \
		taken_; \
	})

/* Returns the descriptor and leaves -1 behind. */
int take_fd(int *fd);

/* Zeroed array; NULL when NR * SIZE overflows or memory is out. Free with free(). */
void *mem_new_array(size_t nr, size_t elem_size);

/* Grows *ARRAY (capacity *CAP elements) to hold at least NR elements; 0 or -ENOMEM, the array then unchanged. */
int mem_grow(void *array_ptr, size_t *cap, size_t nr, size_t elem_size);

#endif
