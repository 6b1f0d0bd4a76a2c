#include "fs/scratch.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/mem.h"
#include "fs/clock.h"

#define SCRATCH_FILES 512
#define SINK_MS	      60000

struct scratch_file {
	uint32_t number; /* 0: free */
	uint32_t vm;	 /* 0: removed, only open still */
	char *name;
	bool is_sink;
	unsigned nr_open;
	struct stat st; /* st_size is the file's size */
	char *data;
	size_t data_cap;
	int64_t used_ms;
};

struct scratch {
	pthread_mutex_t lock;
	/* protected by lock */
	struct scratch_file files[SCRATCH_FILES];
	uint32_t last_number;
};

int scratch_new(struct scratch **ret)
{
	struct scratch *scratch = calloc(1, sizeof *scratch);
	if (!scratch)
		return -ENOMEM;
	pthread_mutex_init(&scratch->lock, NULL);
	*ret = scratch;
	return 0;
}

static void file_free(struct scratch_file *file)
{
	free(file->name);
	free(file->data);
	*file = (struct scratch_file){0};
}

void scratch_free(struct scratch *scratch)
{
	if (!scratch)
		return;
	for (size_t i = 0; i < SCRATCH_FILES; i++)
		file_free(&scratch->files[i]);
	pthread_mutex_destroy(&scratch->lock);
	free(scratch);
}

/* --- the table ---------------------------------------------------------------------------------------------------- */

static void touch(struct scratch_file *file)
{
	clock_gettime(CLOCK_REALTIME, &file->st.st_mtim);
	file->used_ms = clock_ms();
}

static struct scratch_file *by_number_locked(struct scratch *scratch, uint32_t number)
{
	for (struct scratch_file *f = scratch->files; f < scratch->files + SCRATCH_FILES; f++)
		if (number && f->number == number)
			return f;
	return NULL;
}

static struct scratch_file *by_name_locked(struct scratch *scratch, uint32_t vm, const char *name)
{
	for (struct scratch_file *f = scratch->files; f < scratch->files + SCRATCH_FILES; f++)
		if (f->number && f->vm == vm && !strcmp(f->name, name))
			return f;
	return NULL;
}

static struct scratch_file *free_slot_locked(struct scratch *scratch)
{
	int64_t now = clock_ms();
	for (struct scratch_file *f = scratch->files; f < scratch->files + SCRATCH_FILES; f++) {
		if (f->is_sink && !f->nr_open && now - f->used_ms > SINK_MS)
			file_free(f);
		if (!f->number)
			return f;
	}
	return NULL;
}

static void remove_locked(struct scratch_file *file)
{
	file->vm = 0;
	if (!file->nr_open)
		file_free(file);
}

int scratch_create(struct scratch *scratch, uint32_t vm, const char *name, const struct stat *owner_and_mode, bool is_sink,
		   uint32_t *ret_number)
{
	auto_free char *copy = strdup(name);
	if (!copy)
		return -ENOMEM;
	int err = 0;
	pthread_mutex_lock(&scratch->lock);
	struct scratch_file *file = NULL;
	if (by_name_locked(scratch, vm, name))
		err = -EEXIST;
	else if (!(file = free_slot_locked(scratch)))
		err = -ENOSPC;
	if (!err) {
		*file = (struct scratch_file){.number = ++scratch->last_number ? scratch->last_number : ++scratch->last_number,
					      .vm = vm,
					      .name = take_ptr(copy),
					      .is_sink = is_sink,
					      .nr_open = 1,
					      .st = *owner_and_mode};
		file->st.st_size = 0;
		touch(file);
		*ret_number = file->number;
	}
	pthread_mutex_unlock(&scratch->lock);
	return err;
}

uint32_t scratch_find(struct scratch *scratch, uint32_t vm, const char *name)
{
	pthread_mutex_lock(&scratch->lock);
	struct scratch_file *file = by_name_locked(scratch, vm, name);
	uint32_t number = file ? file->number : 0;
	pthread_mutex_unlock(&scratch->lock);
	return number;
}

char *scratch_list(struct scratch *scratch, uint32_t vm, size_t i, uint32_t *ret_number)
{
	char *name = NULL;
	pthread_mutex_lock(&scratch->lock);
	for (struct scratch_file *f = scratch->files; f < scratch->files + SCRATCH_FILES && !name; f++)
		if (f->number && f->vm == vm && !f->is_sink && i-- == 0) {
			name = strdup(f->name);
			*ret_number = f->number;
		}
	pthread_mutex_unlock(&scratch->lock);
	return name;
}

char *scratch_name(struct scratch *scratch, uint32_t number)
{
	pthread_mutex_lock(&scratch->lock);
	struct scratch_file *file = by_number_locked(scratch, number);
	char *name = file ? strdup(file->name) : NULL;
	pthread_mutex_unlock(&scratch->lock);
	return name;
}

int scratch_unlink(struct scratch *scratch, uint32_t vm, const char *name)
{
	pthread_mutex_lock(&scratch->lock);
	struct scratch_file *file = by_name_locked(scratch, vm, name);
	if (file)
		remove_locked(file);
	pthread_mutex_unlock(&scratch->lock);
	return file ? 0 : -ENOENT;
}

int scratch_rename(struct scratch *scratch, uint32_t vm, const char *old_name, const char *new_name)
{
	auto_free char *copy = strdup(new_name);
	if (!copy)
		return -ENOMEM;
	pthread_mutex_lock(&scratch->lock);
	struct scratch_file *file = by_name_locked(scratch, vm, old_name);
	struct scratch_file *replaced = by_name_locked(scratch, vm, new_name);
	if (file && replaced && replaced != file)
		remove_locked(replaced);
	if (file) {
		free(file->name);
		file->name = take_ptr(copy);
	}
	pthread_mutex_unlock(&scratch->lock);
	return file ? 0 : -ENOENT;
}

void scratch_forget(struct scratch *scratch, uint32_t vm)
{
	pthread_mutex_lock(&scratch->lock);
	for (struct scratch_file *f = scratch->files; f < scratch->files + SCRATCH_FILES; f++)
		if (f->number && f->vm == vm)
			remove_locked(f);
	pthread_mutex_unlock(&scratch->lock);
}

/* --- attributes --------------------------------------------------------------------------------------------------- */

int scratch_stat(struct scratch *scratch, uint32_t number, struct stat *ret)
{
	pthread_mutex_lock(&scratch->lock);
	struct scratch_file *file = by_number_locked(scratch, number);
	if (file)
		*ret = file->st;
	pthread_mutex_unlock(&scratch->lock);
	return file ? 0 : -ENOENT;
}

int scratch_chmod(struct scratch *scratch, uint32_t number, mode_t mode)
{
	pthread_mutex_lock(&scratch->lock);
	struct scratch_file *file = by_number_locked(scratch, number);
	if (file)
		file->st.st_mode = mode & 0777;
	pthread_mutex_unlock(&scratch->lock);
	return file ? 0 : -ENOENT;
}

bool scratch_is_sink(struct scratch *scratch, uint32_t number)
{
	pthread_mutex_lock(&scratch->lock);
	struct scratch_file *file = by_number_locked(scratch, number);
	bool is_sink = file && file->is_sink;
	pthread_mutex_unlock(&scratch->lock);
	return is_sink;
}

/* --- content -------------------------------------------------------------------------------------------------------- */

int scratch_open(struct scratch *scratch, uint32_t number)
{
	pthread_mutex_lock(&scratch->lock);
	struct scratch_file *file = by_number_locked(scratch, number);
	if (file)
		file->nr_open++;
	pthread_mutex_unlock(&scratch->lock);
	return file ? 0 : -ENOENT;
}

void scratch_close(struct scratch *scratch, uint32_t number)
{
	pthread_mutex_lock(&scratch->lock);
	struct scratch_file *file = by_number_locked(scratch, number);
	if (file && --file->nr_open == 0 && !file->vm)
		file_free(file);
	else if (file)
		file->used_ms = clock_ms();
	pthread_mutex_unlock(&scratch->lock);
}

ssize_t scratch_read(struct scratch *scratch, uint32_t number, void *buf, size_t len, uint64_t off)
{
	ssize_t got = -ENOENT;
	pthread_mutex_lock(&scratch->lock);
	struct scratch_file *file = by_number_locked(scratch, number);
	if (file) {
		uint64_t file_size = (uint64_t)file->st.st_size;
		got = off >= file_size ? 0 : file_size - off < len ? (ssize_t)(file_size - off) : (ssize_t)len;
		if (got && file->is_sink)
			memset(buf, 0, (size_t)got);
		else if (got)
			memcpy(buf, file->data + off, (size_t)got);
	}
	pthread_mutex_unlock(&scratch->lock);
	return got;
}

static int resize_locked(struct scratch_file *file, uint64_t file_size)
{
	if (!file->is_sink) {
		if (file_size > SCRATCH_FILE_MAX)
			return -EFBIG;
		size_t old_size = (size_t)file->st.st_size;
		if (mem_grow(&file->data, &file->data_cap, file_size, 1) < 0)
			return -ENOSPC;
		if (file_size > old_size)
			memset(file->data + old_size, 0, file_size - old_size);
	}
	file->st.st_size = (off_t)file_size;
	touch(file);
	return 0;
}

static int write_locked(struct scratch_file *file, const void *buf, size_t len, uint64_t off)
{
	int err = 0;
	if (off + len > (uint64_t)file->st.st_size)
		err = resize_locked(file, off + len);
	if (!err && !file->is_sink && len)
		memcpy(file->data + off, buf, len);
	if (!err)
		touch(file);
	return err;
}

int scratch_write(struct scratch *scratch, uint32_t number, const void *buf, size_t len, uint64_t off)
{
	pthread_mutex_lock(&scratch->lock);
	struct scratch_file *file = by_number_locked(scratch, number);
	int err = file ? write_locked(file, buf, len, off) : -ENOENT;
	pthread_mutex_unlock(&scratch->lock);
	return err;
}

int scratch_resize(struct scratch *scratch, uint32_t number, uint64_t file_size)
{
	pthread_mutex_lock(&scratch->lock);
	struct scratch_file *file = by_number_locked(scratch, number);
	int err = file ? resize_locked(file, file_size) : -ENOENT;
	pthread_mutex_unlock(&scratch->lock);
	return err;
}

int scratch_sink(struct scratch *scratch, uint32_t number, uint64_t off, uint64_t len)
{
	pthread_mutex_lock(&scratch->lock);
	struct scratch_file *file = by_number_locked(scratch, number);
	int err = !file ? -ENOENT : file->is_sink ? write_locked(file, NULL, (size_t)len, off) : -EOPNOTSUPP;
	pthread_mutex_unlock(&scratch->lock);
	return err;
}

int scratch_text(struct scratch *scratch, uint32_t number, char **ret_text, size_t *ret_len)
{
	int err = -ENOENT;
	pthread_mutex_lock(&scratch->lock);
	struct scratch_file *file = by_number_locked(scratch, number);
	if (file) {
		size_t len = file->is_sink ? 0 : (size_t)file->st.st_size;
		char *text = malloc(len + 1);
		err = text ? 0 : -ENOMEM;
		if (text) {
			memcpy(text, len ? file->data : "", len);
			text[len] = '\0';
			*ret_text = text;
			*ret_len = len;
		}
	}
	pthread_mutex_unlock(&scratch->lock);
	return err;
}
