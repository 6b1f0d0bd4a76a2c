/* The disk's size, and what it lies over. */
#include <errno.h>

#include "block/head_priv.h"

/* The tables can hold a disk of that size. */
static int make_room(struct head *head, uint64_t virtual_size)
{
	if (virtual_size > 1ull << 62)
		return -EFBIG;
	uint64_t nr_needed = qcow2_l1_needed(&head->header.geo, virtual_size);
	return nr_needed > head->header.l1_size ? tables_grow_l1(head, nr_needed) : 0;
}

static void put_size(struct head *head, uint64_t virtual_size)
{
	pthread_mutex_lock(&head->lock);
	atomic_store(&head->virtual_size, virtual_size);
	head->size_dirty = true;
	pthread_mutex_unlock(&head->lock);
}

/* On disk a disk is whole sectors: the bytes from its end up to there are zeros. (They are filled up from what is seen below
 * the new end: so that is set first.) */
static int set_size(struct head *head, uint64_t virtual_size)
{
	uint64_t old = head_virtual_size(head);
	put_size(head, virtual_size);
	int err = virtual_size % 512 ? overlay_zero(head, virtual_size, round_up(virtual_size, 512) - virtual_size, ZERO_VISIBLY) : 0;
	if (err)
		put_size(head, old);
	return err;
}

/* Zeros between the end and GUEST_OFF. */
static int grow_to(struct head *head, uint64_t guest_off)
{
	uint64_t end = head_virtual_size(head);
	return guest_off > end ? overlay_zero(head, end, guest_off - end, ZERO_VISIBLY) : 0;
}

int overlay_write_growing(struct head *head, const void *buf, size_t len, uint64_t guest_off)
{
	uint64_t end = guest_off + len;
	int err = make_room(head, end);
	if (!err)
		err = grow_to(head, guest_off);
	if (!err)
		err = overlay_write(head, buf, len, guest_off);
	if (!err && end > head_virtual_size(head))
		err = set_size(head, end);
	return err;
}

int overlay_resize(struct head *head, uint64_t virtual_size)
{
	uint64_t end = head_virtual_size(head);
	int err = make_room(head, virtual_size);
	if (!err && !virtual_size && end && !head->is_device) {
		err = head_rebuild(head, &(struct overlay_spec){0}, NULL);
	} else if (!err && virtual_size != end) {
		if (virtual_size < end)
			err = overlay_zero(head, virtual_size, round_up(end, subcluster_size_of(head)) - virtual_size, ZERO_CUT);
		else
			err = grow_to(head, virtual_size);
		if (!err)
			err = set_size(head, virtual_size);
	}
	return err;
}

int head_resize(struct head *head, uint64_t virtual_size)
{
	pthread_rwlock_wrlock(&head->gate);
	int err = head->kind->resize(head, virtual_size);
	pthread_rwlock_unlock(&head->gate);
	return head_changed(head, err);
}

int head_adopt(struct head *head, struct view *view, const struct overlay_spec *spec)
{
	if (head->kind != &head_qcow2)
		return -EOPNOTSUPP;
	pthread_rwlock_wrlock(&head->gate);
	uint64_t old_end = head_virtual_size(head);
	int err = head->below || !tables_are_empty(head) ? -EINVAL : head_rebuild(head, spec, view);
	if (!err)
		head->comparing = true;
	if (!err && old_end > spec->virtual_size) {
		err = make_room(head, old_end);
		if (!err)
			err = grow_to(head, old_end);
		if (!err)
			err = set_size(head, old_end);
	}
	pthread_rwlock_unlock(&head->gate);
	return head_changed(head, err);
}

static int share(struct head *head, uint64_t guest_off, uint64_t len)
{
	uint64_t old_end = head_virtual_size(head), end = guest_off + len;
	int err = make_room(head, end);
	if (!err)
		err = grow_to(head, guest_off);
	if (!err) /* behind the new end nothing is seen */
		err = overlay_zero(head, guest_off, (end >= old_end ? round_up(end, subcluster_size_of(head)) : end) - guest_off, ZERO_SHARE);
	return !err && end > old_end ? set_size(head, end) : err;
}

int head_share(struct head *head, const struct view *beneath, uint64_t guest_off, uint64_t len)
{
	if (head->kind != &head_qcow2)
		return -EOPNOTSUPP;
	pthread_rwlock_wrlock(&head->gate);
	/* What became U where a pull has passed would read otherwise once the pulled layers are gone. */
	int err = head->below == beneath && !atomic_load(&head->nr_pulled) ? share(head, guest_off, len) : -ESTALE;
	pthread_rwlock_unlock(&head->gate);
	return head_changed(head, err);
}
