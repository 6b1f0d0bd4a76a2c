#include "fs/passthrough.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "base/list.h"
#include "base/mem.h"
#include "fs/channel.h"
#include "fs/keeper.h"
#include "fs/place.h"
#include "store/store.h"

#define WAIT_CLOSED_MS 300

struct open_node {
	struct list link;
	uint64_t ino, content;
	struct place place; /* owned */
	unsigned nr_open;
	int backing_id; /* 0: the requests come to us */
};

struct passthrough {
	atomic_bool refused; /* the kernel doesn't let us */
	pthread_mutex_t lock;
	pthread_cond_t closed; /* a node has gone */
	struct list nodes;     /* protected by lock */
};

int passthrough_new(struct passthrough **ret)
{
	struct passthrough *passthrough = calloc(1, sizeof *passthrough);
	if (!passthrough)
		return -ENOMEM;
	pthread_condattr_t attr;
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_mutex_init(&passthrough->lock, NULL);
	pthread_cond_init(&passthrough->closed, &attr);
	pthread_condattr_destroy(&attr);
	list_init(&passthrough->nodes);
	*ret = passthrough;
	return 0;
}

static void remove_node(struct open_node *node)
{
	if (node->backing_id)
		keeper_backing_close(node->backing_id);
	list_remove(&node->link);
	place_done(&node->place);
	free(node);
}

void passthrough_free(struct passthrough *passthrough)
{
	if (!passthrough)
		return;
	while (!list_is_empty(&passthrough->nodes))
		remove_node(list_entry(passthrough->nodes.next, struct open_node, link));
	pthread_cond_destroy(&passthrough->closed);
	pthread_mutex_destroy(&passthrough->lock);
	free(passthrough);
}

bool passthrough_is_usable(struct passthrough *passthrough)
{
	return channel_features()->passthrough && !atomic_load(&passthrough->refused);
}

static struct open_node *find_locked(struct passthrough *passthrough, uint64_t ino)
{
	for (struct list *link = passthrough->nodes.next; link != &passthrough->nodes; link = link->next) {
		struct open_node *node = list_entry(link, struct open_node, link);
		if (node->ino == ino)
			return node;
	}
	return NULL;
}

static int backing_of(struct passthrough *passthrough, struct disk_file *file)
{
	auto_close int fd = atomic_load(&passthrough->refused) ? -EPERM : disk_flat_open(file);
	int id = fd < 0 ? 0 : keeper_backing_open(fd);
	if (id == -EPERM)
		atomic_store(&passthrough->refused, true);
	return id > 0 ? id : 0;
}

/* The node of INO. That it is open with another content may be over in a moment: the kernel tells us of a close(2) when that has returned. */
static struct open_node *find_settled_locked(struct passthrough *passthrough, uint64_t ino, uint64_t content)
{
	struct timespec end;
	clock_gettime(CLOCK_MONOTONIC, &end);
	end.tv_nsec += WAIT_CLOSED_MS * 1000000L;
	end.tv_sec += end.tv_nsec / 1000000000L;
	end.tv_nsec %= 1000000000L;
	struct open_node *node = find_locked(passthrough, ino);
	while (node && node->backing_id && node->content != content &&
	       pthread_cond_timedwait(&passthrough->closed, &passthrough->lock, &end) == 0)
		node = find_locked(passthrough, ino);
	return node;
}

int passthrough_open(struct passthrough *passthrough, const struct place *place, uint64_t content, struct disk_file *file)
{
	int ret = -ENOMEM;
	uint64_t ino = place_ino(place);
	pthread_mutex_lock(&passthrough->lock);
	struct open_node *node = find_settled_locked(passthrough, ino, content);
	if (node) {
		bool other = node->backing_id && node->content != content;
		node->nr_open += !other;
		ret = other ? -ESTALE : node->backing_id;
	} else if ((node = calloc(1, sizeof *node))) {
		*node = (struct open_node){.ino = ino, .content = content, .nr_open = 1};
		place_copy(place, &node->place);
		node->backing_id = ret = backing_of(passthrough, file);
		list_push(&passthrough->nodes, &node->link);
	}
	pthread_mutex_unlock(&passthrough->lock);
	return ret;
}

void passthrough_close(struct passthrough *passthrough, uint64_t ino)
{
	pthread_mutex_lock(&passthrough->lock);
	struct open_node *node = find_locked(passthrough, ino);
	if (node && --node->nr_open == 0) {
		remove_node(node);
		pthread_cond_broadcast(&passthrough->closed);
	}
	pthread_mutex_unlock(&passthrough->lock);
}

void passthrough_describe(struct passthrough *passthrough, uint32_t vm, struct strbuf *text)
{
	pthread_mutex_lock(&passthrough->lock);
	for (struct list *link = passthrough->nodes.next; link != &passthrough->nodes; link = link->next) {
		const struct open_node *node = list_entry(link, struct open_node, link);
		if (node->place.vm->id == vm)
			strbuf_addf(text, "open snapshots/%s/disks/%s: %s\n", node->place.snapshot->name, node->place.disk->file_name,
				    node->backing_id ? "read by the kernel from one flat file" : "read through vmsnapfs");
	}
	pthread_mutex_unlock(&passthrough->lock);
}
