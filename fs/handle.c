#include "fs/handle.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/mem.h"
#include "fs/control.h"
#include "fs/fs.h"
#include "fs/place.h"
#include "fs/tree.h"

#define EDITED_MAX_BYTES (4u << 20)
#define WAIT_CLOSED_MS	 300

struct handles {
	pthread_mutex_t lock;
	pthread_cond_t closed; /* a handle has left the list */
	struct list list;      /* protected by lock */
	unsigned nr_flushing;  /* the same */
};

int handles_new(struct handles **ret)
{
	struct handles *handles = calloc(1, sizeof *handles);
	if (!handles)
		return -ENOMEM;
	pthread_condattr_t attr;
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_mutex_init(&handles->lock, NULL);
	pthread_cond_init(&handles->closed, &attr);
	pthread_condattr_destroy(&attr);
	list_init(&handles->list);
	*ret = handles;
	return 0;
}

void handles_free(struct handles *handles)
{
	if (!handles)
		return;
	pthread_cond_destroy(&handles->closed);
	pthread_mutex_destroy(&handles->lock);
	free(handles);
}

struct handle *handle_new(struct fs *fs, const struct place *place, enum handle_kind kind, bool writable)
{
	struct handle *handle = calloc(1, sizeof *handle);
	if (handle)
		handle->place = malloc(sizeof *handle->place);
	if (!handle || !handle->place) {
		free(handle);
		return NULL;
	}
	atomic_init(&handle->nr_refs, 1);
	handle->kind = kind;
	if (kind == HANDLE_DIR)
		pthread_mutex_init(&handle->dir_lock, NULL);
	handle->writable = writable;
	handle->ino = place_ino(place);
	handle->vm = place->vm ? place->vm->id : 0;
	place_copy(place, handle->place);
	pthread_mutex_lock(&fs->handles->lock);
	list_push(&fs->handles->list, &handle->link);
	pthread_mutex_unlock(&fs->handles->lock);
	return handle;
}

void handle_set_disk(struct fs *fs, struct handle *handle, struct disk_file *disk)
{
	pthread_mutex_lock(&fs->handles->lock); /* it is in the table already */
	handle->disk = disk;
	pthread_mutex_unlock(&fs->handles->lock);
}

static void close_disk(struct fs *fs, struct handle *handle)
{
	struct reason why = {0};
	if (!handle->disk)
		return;
	sources_remove(fs->sources, handle->disk);
	if (handle->is_counted)
		passthrough_close(fs->passthrough, handle->ino);
	int err = disk_close(handle->disk, &why);
	if (err) {
		char path[600];
		place_path(fs, handle->place, NULL, path, sizeof path);
		events_add(fs->events, handle->place->vm->name, "close %s: %s (%s)", path, why.text, strerror(-err));
	}
}

static void close_content(struct fs *fs, struct handle *handle)
{
	switch (handle->kind) {
	case HANDLE_DISK:
		close_disk(fs, handle);
		break;
	case HANDLE_TEXT:
		free(handle->text);
		break;
	case HANDLE_EVENTS:
		break;
	case HANDLE_DOMAIN:
		strbuf_done(&handle->edited);
		break;
	case HANDLE_ACTION:
		control_free(handle->control);
		break;
	case HANDLE_SCRATCH:
		scratch_close(fs->scratch, node_number(handle->place->node));
		break;
	case HANDLE_DIR:
		dir_list_free(handle->dir);
		pthread_mutex_destroy(&handle->dir_lock);
		break;
	}
}

struct handle *handle_ref(struct handle *handle)
{
	atomic_fetch_add(&handle->nr_refs, 1);
	return handle;
}

/* One that is in the table may be about to leave it. */
static bool try_ref(struct handle *handle)
{
	unsigned nr = atomic_load(&handle->nr_refs);
	while (nr && !atomic_compare_exchange_weak(&handle->nr_refs, &nr, nr + 1))
		continue;
	return nr;
}

void handle_put(struct fs *fs, struct handle *handle)
{
	if (atomic_fetch_sub(&handle->nr_refs, 1) != 1)
		return;
	/* Closed first, then out of the table: who waits for it wants the disk to be free. */
	close_content(fs, handle);
	pthread_mutex_lock(&fs->handles->lock);
	list_remove(&handle->link);
	pthread_cond_broadcast(&fs->handles->closed);
	pthread_mutex_unlock(&fs->handles->lock);
	place_done(handle->place);
	free(handle->place);
	free(handle);
}

void handles_close_all(struct fs *fs)
{
	while (!list_is_empty(&fs->handles->list))
		handle_put(fs, list_entry(fs->handles->list.next, struct handle, link));
}

#define for_each_handle(handles, handle)                                                     \
	for (struct handle *handle = list_entry((handles)->list.next, struct handle, link); \
	     &handle->link != &(handles)->list; handle = list_entry(handle->link.next, struct handle, link))

struct handle *handles_find(struct handles *handles, uint64_t ino)
{
	struct handle *found = NULL;
	pthread_mutex_lock(&handles->lock);
	for_each_handle(handles, handle)
		if (!found && handle->ino == ino && (handle->kind != HANDLE_DISK || handle->disk) && try_ref(handle))
			found = handle;
	pthread_mutex_unlock(&handles->lock);
	return found;
}

struct handle *handles_next_disk(struct fs *fs, struct handle *prev)
{
	struct handles *handles = fs->handles;
	pthread_mutex_lock(&handles->lock);
	struct list *link = prev ? prev->link.next : handles->list.next;
	struct handle *next = NULL;
	for (; link != &handles->list && !next; link = link->next) {
		struct handle *handle = list_entry(link, struct handle, link);
		if (handle->kind == HANDLE_DISK && handle->disk && try_ref(handle))
			next = handle;
	}
	pthread_mutex_unlock(&handles->lock);
	if (prev)
		handle_put(fs, prev);
	return next;
}

bool handles_has_writer(struct handles *handles, uint64_t ino)
{
	bool found = false;
	pthread_mutex_lock(&handles->lock);
	for_each_handle(handles, handle)
		found = found || (handle->ino == ino && handle->writable);
	pthread_mutex_unlock(&handles->lock);
	return found;
}

static bool has_disk_open_locked(struct handles *handles, uint32_t vm)
{
	for_each_handle(handles, handle)
		if (handle->vm == vm && handle->kind == HANDLE_DISK)
			return true;
	return false;
}

void handles_wait_closed(struct handles *handles, uint32_t vm)
{
	struct timespec end;
	clock_gettime(CLOCK_MONOTONIC, &end);
	end.tv_nsec += WAIT_CLOSED_MS * 1000000L;
	end.tv_sec += end.tv_nsec / 1000000000L;
	end.tv_nsec %= 1000000000L;
	pthread_mutex_lock(&handles->lock);
	while (has_disk_open_locked(handles, vm) && pthread_cond_timedwait(&handles->closed, &handles->lock, &end) == 0)
		continue;
	pthread_mutex_unlock(&handles->lock);
}

struct flush {
	struct handles *handles;
	struct handle *handle; /* with a reference */
};

/* The reference is never given back: nothing is closed any more. */
static void *flush(void *arg)
{
	struct flush *one = arg;
	disk_flush(one->handle->disk);
	pthread_mutex_lock(&one->handles->lock);
	one->handles->nr_flushing--;
	pthread_cond_broadcast(&one->handles->closed);
	pthread_mutex_unlock(&one->handles->lock);
	free(one);
	return NULL;
}

static void flush_locked(struct handles *handles, struct handle *handle)
{
	pthread_t thread;
	struct flush *one = malloc(sizeof *one);
	if (!one || !try_ref(handle)) {
		free(one);
		return;
	}
	*one = (struct flush){handles, handle};
	handles->nr_flushing++;
	if (pthread_create(&thread, NULL, flush, one) == 0)
		pthread_detach(thread);
	else
		free(one); /* it counts as one that wasn't flushed */
}

unsigned handles_flush_all(struct fs *fs, unsigned seconds)
{
	struct handles *handles = fs->handles;
	struct timespec end;
	clock_gettime(CLOCK_MONOTONIC, &end);
	end.tv_sec += seconds;
	pthread_mutex_lock(&handles->lock);
	for_each_handle(handles, handle)
		if (handle->kind == HANDLE_DISK && handle->writable && handle->disk) /* NULL: it is being opened */
			flush_locked(handles, handle);
	while (handles->nr_flushing && pthread_cond_timedwait(&handles->closed, &handles->lock, &end) == 0)
		continue;
	unsigned nr = handles->nr_flushing;
	pthread_mutex_unlock(&handles->lock);
	return nr;
}

/* --- a domain.xml being written ---------------------------------------------------------------------------------- */

static int edit_resize_locked(struct handle *handle, uint64_t file_size)
{
	struct strbuf *edited = &handle->edited;
	if (file_size > EDITED_MAX_BYTES)
		return -EFBIG;
	if (mem_grow(&edited->text, &edited->cap, file_size + 1, 1) < 0)
		return -ENOMEM;
	if (file_size > edited->len)
		memset(edited->text + edited->len, 0, file_size - edited->len);
	edited->len = file_size;
	edited->text[file_size] = '\0';
	handle->is_changed = true;
	return 0;
}

int handle_edit(struct fs *fs, struct handle *handle, const void *buf, size_t len, uint64_t off)
{
	int err = 0;
	pthread_mutex_lock(&fs->handles->lock);
	if (off + len > handle->edited.len)
		err = edit_resize_locked(handle, off + len);
	if (!err && len)
		memcpy(handle->edited.text + off, buf, len);
	handle->is_changed = handle->is_changed || !err;
	pthread_mutex_unlock(&fs->handles->lock);
	return err;
}

int handle_edit_resize(struct fs *fs, struct handle *handle, uint64_t file_size)
{
	pthread_mutex_lock(&fs->handles->lock);
	int err = edit_resize_locked(handle, file_size);
	pthread_mutex_unlock(&fs->handles->lock);
	return err;
}

size_t handle_edit_read(struct fs *fs, struct handle *handle, void *buf, size_t len, uint64_t off)
{
	size_t got = 0;
	pthread_mutex_lock(&fs->handles->lock);
	const struct strbuf *edited = &handle->edited;
	if (off < edited->len) {
		got = edited->len - off < len ? edited->len - off : len;
		memcpy(buf, edited->text + off, got);
	}
	pthread_mutex_unlock(&fs->handles->lock);
	return got;
}

char *handle_edit_take_changes(struct fs *fs, struct handle *handle, bool last, size_t *ret_len)
{
	char *text = NULL;
	pthread_mutex_lock(&fs->handles->lock);
	if (handle->is_changed && (last || handle->edited.len))
		text = malloc(handle->edited.len + 1);
	if (text) {
		memcpy(text, handle->edited.len ? handle->edited.text : "", handle->edited.len);
		text[handle->edited.len] = '\0';
		*ret_len = handle->edited.len;
		handle->is_changed = false;
	}
	pthread_mutex_unlock(&fs->handles->lock);
	return text;
}

bool handles_edited_size(struct handles *handles, uint64_t ino, uint64_t *ret_file_size)
{
	bool found = false;
	pthread_mutex_lock(&handles->lock);
	for_each_handle(handles, handle)
		if (handle->ino == ino && handle->kind == HANDLE_DOMAIN && handle->is_changed) {
			*ret_file_size = handle->edited.len;
			found = true;
		}
	pthread_mutex_unlock(&handles->lock);
	return found;
}

bool handles_edit_resize(struct fs *fs, uint64_t ino, uint64_t file_size, int *ret_err)
{
	bool found = false;
	pthread_mutex_lock(&fs->handles->lock);
	for_each_handle(fs->handles, handle)
		if (handle->ino == ino && handle->kind == HANDLE_DOMAIN) {
			*ret_err = edit_resize_locked(handle, file_size);
			found = true;
		}
	pthread_mutex_unlock(&fs->handles->lock);
	return found;
}
