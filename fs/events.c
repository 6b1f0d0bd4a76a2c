#include "fs/events.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <syslog.h>
#include <unistd.h>

#include "base/file.h"
#include "base/mem.h"
#include "base/name.h"
#include "base/strbuf.h"
#include "store/intern.h"

#define LOG_NAME	  "events.log"
#define LOG_MAX_BYTES	  (8u << 20) /* then it becomes events.log.old */
#define OLD_LINES_BYTES	  (256u << 10)
#define RECENT_LINES	  64
#define REPEAT_SECONDS	  60
#define TIME_LEN	  20 /* 2025-11-20T10:52:03Z */
#define LINE_MAX_BYTES	  1500

struct recent_line {
	uint64_t hash;
	time_t said;
};

struct events {
	bool foreground;
	pthread_mutex_t lock;
	/* protected by lock */
	struct strbuf lines; /* whole lines, each ends in a newline */
	struct timespec changed;
	struct recent_line recent[RECENT_LINES];
	unsigned next_recent;
	int log_dirfd, log_fd; /* -1: none */
	size_t nr_unlogged;    /* bytes at the end of the lines that aren't in the log yet: there was no space */
};

int events_new(bool foreground, struct events **ret)
{
	struct events *events = calloc(1, sizeof *events);
	if (!events)
		return -ENOMEM;
	events->foreground = foreground;
	events->log_dirfd = events->log_fd = -1;
	pthread_mutex_init(&events->lock, NULL);
	clock_gettime(CLOCK_REALTIME, &events->changed);
	if (!foreground)
		openlog("vmsnapfs", LOG_PID, LOG_DAEMON);
	*ret = events;
	return 0;
}

/* --- adding ----------------------------------------------------------------------------------------------------- */

/* Whether the line was said within the last minute; remembers it. */
static bool is_repeated_locked(struct events *events, const char *line, time_t now)
{
	uint64_t hash = hash_text(HASH_START, line);
	for (unsigned i = 0; i < RECENT_LINES; i++) {
		struct recent_line *recent = &events->recent[i];
		if (recent->hash == hash && now - recent->said < REPEAT_SECONDS)
			return true;
	}
	events->recent[events->next_recent++ % RECENT_LINES] = (struct recent_line){hash, now};
	return false;
}

/* Drops whole lines from the start until at most KEEP bytes are left. */
static void drop_oldest_locked(struct events *events, size_t keep)
{
	struct strbuf *lines = &events->lines;
	if (lines->len <= keep)
		return;
	size_t cut = lines->len - keep;
	const char *end = memchr(lines->text + cut, '\n', keep);
	cut = end ? (size_t)(end - lines->text) + 1 : lines->len;
	memmove(lines->text, lines->text + cut, lines->len - cut + 1);
	lines->len -= cut;
	if (events->nr_unlogged > lines->len)
		events->nr_unlogged = lines->len;
}

/* A file of the store's own: no FIFO, which would have us wait for a reader, and no second name of somebody's file. */
static int open_log(int dirfd)
{
	struct stat st;
	auto_close int fd = openat(dirfd, LOG_NAME, O_RDWR | O_APPEND | O_CREAT | O_NONBLOCK | O_NOFOLLOW | O_CLOEXEC, 0600);
	bool ok = fd >= 0 && fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_nlink == 1;
	return ok ? take_fd(&fd) : -1;
}

/* False: there is no room for it, and nothing of it in the log. */
static bool append_line(int fd, const char *line, size_t len)
{
	struct stat st;
	ssize_t n = write(fd, line, len);
	if (n > 0 && (size_t)n < len && (fstat(fd, &st) < 0 || ftruncate(fd, st.st_size - n) < 0))
		return true; /* a torn line, which the next one is added to */
	return n == (ssize_t)len;
}

/* A log that can't be written must not stop the work it tells of: what there is no space for now is written with a later line, or at the end. */
static void write_log_locked(struct events *events)
{
	struct stat st;
	if (events->log_fd < 0 || !events->nr_unlogged)
		return;
	if (fstat(events->log_fd, &st) == 0 && st.st_size > (off_t)LOG_MAX_BYTES) {
		if (renameat(events->log_dirfd, LOG_NAME, events->log_dirfd, LOG_NAME ".old") < 0)
			return;
		close(events->log_fd);
		events->log_fd = open_log(events->log_dirfd);
	}
	while (events->log_fd >= 0 && events->nr_unlogged) {
		const char *line = events->lines.text + events->lines.len - events->nr_unlogged;
		size_t len = (size_t)((const char *)memchr(line, '\n', events->nr_unlogged) + 1 - line);
		if (!append_line(events->log_fd, line, len))
			return;
		events->nr_unlogged -= len;
	}
}

static void add_line_locked(struct events *events, const char *text)
{
	struct tm tm;
	char line[TIME_LEN + 1 + LINE_MAX_BYTES + 2];
	clock_gettime(CLOCK_REALTIME, &events->changed);
	gmtime_r(&events->changed.tv_sec, &tm);
	size_t len = strftime(line, sizeof line, "%Y-%m-%dT%H:%M:%SZ", &tm);
	len += (size_t)snprintf(line + len, sizeof line - len, " %s\n", text);
	strbuf_add(&events->lines, line, len);
	events->nr_unlogged = events->lines.failed ? 0 : events->nr_unlogged + len;
	if (events->lines.len > EVENTS_MAX_BYTES)
		drop_oldest_locked(events, EVENTS_MAX_BYTES / 2);
	write_log_locked(events);
}

static void add_text(struct events *events, const char *vm, const char *text)
{
	char line[LINE_MAX_BYTES];
	snprintf(line, sizeof line, "%s: %s", vm ? vm : "-", text);
	name_make_printable(line); /* a name or a reason may hold anything: a line stays a line */
	pthread_mutex_lock(&events->lock);
	bool repeated = is_repeated_locked(events, line, time(NULL));
	if (!repeated)
		add_line_locked(events, line);
	pthread_mutex_unlock(&events->lock);
	if (repeated)
		return;
	if (events->foreground)
		fprintf(stderr, "vmsnapfs: %s\n", line);
	else
		syslog(LOG_NOTICE, "%s", line);
}

void events_add(struct events *events, const char *vm, const char *fmt, ...)
{
	char text[LINE_MAX_BYTES];
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(text, sizeof text, fmt, ap);
	va_end(ap);
	add_text(events, vm, text);
}

static void sink_event(void *ctx, const char *vm, const char *text)
{
	add_text(ctx, vm, text);
}

struct log_sink events_sink(struct events *events)
{
	return (struct log_sink){.event = sink_event, .ctx = events};
}

/* --- the log file ------------------------------------------------------------------------------------------------- */

/* Whole lines, as they would have been added here: somebody else may have written to the file. */
static void add_printable(struct strbuf *lines, const char *text, size_t len)
{
	for (size_t line_len; len; text += line_len, len -= line_len) {
		const char *end = (const char *)memchr(text, '\n', len);
		char line[TIME_LEN + 1 + LINE_MAX_BYTES + 2];
		line_len = (size_t)(end - text) + 1;
		snprintf(line, sizeof line, "%.*s", (int)line_len - 1, text);
		name_make_printable(line);
		strbuf_addf(lines, "%s\n", line);
	}
}

/* The last whole lines of the file behind FD, in front of what is there. */
static void load_old_lines_locked(struct events *events, int fd)
{
	struct stat st;
	if (fstat(fd, &st) < 0 || st.st_size <= 0)
		return;
	size_t len = st.st_size < (off_t)OLD_LINES_BYTES ? (size_t)st.st_size : OLD_LINES_BYTES;
	auto_free char *old = malloc(len);
	ssize_t got = old ? file_read(fd, old, len, (uint64_t)st.st_size - len) : 0;
	const char *last = got > 0 ? memrchr(old, '\n', (size_t)got) : NULL;
	if (!last)
		return;
	/* Whoever wrote the last line died in it, or had no space. */
	ssize_t torn = old + got - (last + 1);
	got -= torn;
	if (torn && ftruncate(fd, st.st_size - torn) < 0)
		return;
	const char *start = old;
	if ((off_t)len < st.st_size)
		start = (const char *)memchr(old, '\n', (size_t)got) + 1;
	struct strbuf all = {0};
	add_printable(&all, start, (size_t)(old + got - start));
	if (events->lines.len)
		strbuf_add(&all, events->lines.text, events->lines.len);
	if (all.failed) {
		strbuf_done(&all);
		return;
	}
	strbuf_done(&events->lines);
	events->lines = all;
}

void events_open_log(struct events *events, int store_dirfd)
{
	int fd = open_log(store_dirfd);
	int dirfd = fcntl(store_dirfd, F_DUPFD_CLOEXEC, 0);
	if (fd < 0)
		events_add(events, NULL, "events.log in the store isn't written: it is no file of its own");
	pthread_mutex_lock(&events->lock);
	events->log_dirfd = dirfd;
	if (fd >= 0) {
		load_old_lines_locked(events, fd);
		events->log_fd = fd;
		write_log_locked(events);
	}
	pthread_mutex_unlock(&events->lock);
}

void events_free(struct events *events)
{
	if (!events)
		return;
	write_log_locked(events);
	if (events->log_fd >= 0)
		close(events->log_fd);
	if (events->log_dirfd >= 0)
		close(events->log_dirfd);
	if (!events->foreground)
		closelog();
	pthread_mutex_destroy(&events->lock);
	strbuf_done(&events->lines);
	free(events);
}

/* --- as a file ------------------------------------------------------------------------------------------------------ */

/* Whether the line at LINE is one of VM: "TIME VM: …". */
static bool line_is_of(const char *line, size_t len, const char *vm, size_t vm_len)
{
	return len > TIME_LEN + 1 + vm_len + 2 && line[TIME_LEN] == ' ' && !memcmp(line + TIME_LEN + 1, vm, vm_len) &&
	       !memcmp(line + TIME_LEN + 1 + vm_len, ": ", 2);
}

/* Copies what lies at OFF of VM's lines taken together; returns how much. *RET_SIZE is the length of them all. */
static size_t copy_lines_locked(struct events *events, const char *vm_name, char *buf, size_t len, uint64_t off,
				uint64_t *ret_size)
{
	char vm[NAME_MAX + 1]; /* as the lines have it */
	snprintf(vm, sizeof vm, "%s", vm_name);
	name_make_printable(vm);
	uint64_t pos = 0;
	size_t copied = 0, vm_len = strlen(vm);
	const char *line = events->lines.text, *end = line + events->lines.len;
	while (line < end) {
		const char *next = (const char *)memchr(line, '\n', (size_t)(end - line)) + 1;
		size_t line_len = (size_t)(next - line);
		if (line_is_of(line, line_len, vm, vm_len)) {
			uint64_t skip = off > pos ? off - pos : 0;
			if (skip < line_len && copied < len) {
				size_t n = line_len - skip < len - copied ? line_len - skip : len - copied;
				memcpy(buf + copied, line + skip, n);
				copied += n;
			}
			pos += line_len;
		}
		line = next;
	}
	*ret_size = pos;
	return copied;
}

uint64_t events_size(struct events *events, const char *vm)
{
	uint64_t file_size;
	pthread_mutex_lock(&events->lock);
	if (vm)
		copy_lines_locked(events, vm, NULL, 0, 0, &file_size);
	else
		file_size = events->lines.len;
	pthread_mutex_unlock(&events->lock);
	return file_size;
}

struct timespec events_changed(struct events *events)
{
	pthread_mutex_lock(&events->lock);
	struct timespec changed = events->changed;
	pthread_mutex_unlock(&events->lock);
	return changed;
}

ssize_t events_read(struct events *events, const char *vm, void *buf, size_t len, uint64_t off)
{
	size_t got = 0;
	pthread_mutex_lock(&events->lock);
	const struct strbuf *lines = &events->lines;
	if (vm) {
		uint64_t file_size;
		got = copy_lines_locked(events, vm, buf, len, off, &file_size);
	} else if (off < lines->len) {
		got = lines->len - off < len ? lines->len - off : len;
		memcpy(buf, lines->text + off, got);
	}
	pthread_mutex_unlock(&events->lock);
	return (ssize_t)got;
}
