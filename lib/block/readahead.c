#include "block/readahead.h"

#include <string.h>

#define NEAR	     (512u << 10) /* requests so far apart are still one reader's */
#define FIRST_WINDOW (128u << 10)

void readahead_init(struct readahead *ra)
{
	memset(ra, 0, sizeof *ra);
	pthread_mutex_init(&ra->lock, NULL);
}

void readahead_done(struct readahead *ra)
{
	pthread_mutex_destroy(&ra->lock);
}

static struct readahead_stream *find_locked(struct readahead *ra, uint64_t guest_off)
{
	for (unsigned i = 0; i < READAHEAD_STREAMS; i++) {
		uint64_t end = ra->streams[i].end;
		if (end && guest_off + NEAR >= end && guest_off <= end + NEAR)
			return &ra->streams[i];
	}
	return NULL;
}

uint64_t readahead_next(struct readahead *ra, uint64_t guest_off, uint64_t len, uint64_t max, uint64_t *ret_from)
{
	uint64_t end = guest_off + len, nr = 0;
	pthread_mutex_lock(&ra->lock);
	struct readahead_stream *stream = find_locked(ra, guest_off);
	if (!stream) {
		stream = &ra->streams[ra->next++ % READAHEAD_STREAMS];
		*stream = (struct readahead_stream){.end = end, .ahead = end};
	} else if (end > stream->end) {
		stream->end = end;
		stream->window = stream->window ? stream->window * 2 : FIRST_WINDOW;
		if (stream->window > max)
			stream->window = max;
		if (stream->ahead < end)
			stream->ahead = end;
		if (stream->ahead <= end + stream->window / 2) { /* much at a time: each time somebody has to be woken */
			*ret_from = stream->ahead;
			nr = end + stream->window - stream->ahead;
			stream->ahead += nr;
		}
	}
	pthread_mutex_unlock(&ra->lock);
	return nr;
}
