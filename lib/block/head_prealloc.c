/* Space for all of a disk: steps P1 to P4 of head_priv.h. */
#include <errno.h>
#include <fcntl.h>

#include "block/head_priv.h"
#include "block/qcow2_format.h"
#include "block/raw.h"

/* Shared blocks become the file's own where the filesystem shares any: to write to them would take space. */
static int give_space(int fd, uint64_t off, uint64_t len)
{
	if (!len || fallocate(fd, FALLOC_FL_UNSHARE_RANGE, (off_t)off, (off_t)len) == 0 || fallocate(fd, 0, (off_t)off, (off_t)len) == 0)
		return 0;
	return -errno;
}

/* P3, for a filesystem that can't allocate without writing: what nobody else writes to as long as the span is held. */
static int write_space(const struct head *head, const struct span *span)
{
	int err = 0;
	for (unsigned i = 0; i < span->nr && !err; i++)
		for (unsigned sc = 0; sc < QCOW2_SUBCLUSTERS && !err; sc++)
			if (!(span->states[i].allocated & 1u << sc))
				err = raw_write_zeros(head->fd, span->states[i].host_off + sc * subcluster_size_of(head), subcluster_size_of(head));
	return err;
}

/* P3: neighbours together. */
static int allocate_space(const struct head *head, const struct span *span)
{
	uint64_t off = 0, len = 0, cluster_size = cluster_size_of(head);
	int err = 0;
	for (unsigned i = 0; i < span->nr && !err; i++) {
		uint64_t host_off = span->states[i].host_off;
		if (off + len == host_off) {
			len += cluster_size;
			continue;
		}
		err = give_space(head->fd, off, len);
		off = host_off;
		len = cluster_size;
	}
	if (!err)
		err = give_space(head->fd, off, len);
	return err == -EOPNOTSUPP || err == -ENOSYS ? write_space(head, span) : err;
}

static int fill_span(struct head *head, struct span *span)
{
	uint64_t wanted = 0;
	for (unsigned i = 0; i < span->nr; i++)
		wanted |= span->states[i].host_off ? 0 : 1ull << i;
	int err = wanted ? head_mark_dirty(head) : 0; /* P1 */
	pthread_mutex_lock(&head->lock);
	if (!err && wanted)
		err = span_alloc_locked(head, span, wanted); /* P2 */
	pthread_mutex_unlock(&head->lock);
	if (!err && !head->is_device)
		err = allocate_space(head, span);
	for (unsigned i = 0; i < span->nr; i++)
		span->states[i].zero |= wanted & 1ull << i ? ~0u : 0;
	return err;
}

int overlay_preallocate(struct head *head, uint64_t guest_off, uint64_t len, uint64_t *ret_len)
{
	struct span span;
	if (head->below)
		return -EINVAL;
	*ret_len = span_fit(head, guest_off, len);
	pthread_mutex_lock(&head->lock);
	int err = span_claim_locked(head, &span, guest_off, *ret_len, true);
	pthread_mutex_unlock(&head->lock);
	if (err)
		return err;
	err = fill_span(head, &span);
	pthread_mutex_lock(&head->lock);
	err = span_release_locked(head, &span, err); /* P4 */
	pthread_mutex_unlock(&head->lock);
	return err;
}

int raw_preallocate(struct head *head, uint64_t guest_off, uint64_t len, uint64_t *ret_len)
{
	*ret_len = min_u64(len, 64u << 20);
	return head->is_device ? 0 : give_space(head->fd, guest_off, *ret_len);
}

int head_preallocate(struct head *head, uint64_t guest_off, uint64_t len)
{
	uint64_t end = guest_off + min_u64(len, UINT64_MAX - guest_off), done = 0;
	int err = 0;
	do {
		pthread_rwlock_rdlock(&head->gate);
		uint64_t stop = min_u64(end, head_virtual_size(head));
		done = 0;
		err = guest_off < stop ? head->kind->preallocate(head, guest_off, stop - guest_off, &done) : 0;
		pthread_rwlock_unlock(&head->gate);
		err = head_changed(head, err);
		guest_off += done;
	} while (!err && done);
	return err;
}
