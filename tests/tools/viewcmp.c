/* Compares views of image chains with raw files that say what they must hold, without store or mount.
 *
 * viewcmp DIR SEED < LIST: each line of LIST is IMAGE SNAPSHOT RAW-FILE (SNAPSHOT "-": the active state); the format is
 * found by the image's magic. DIR is the only directory trusted. Each view is read from end to end in pieces of random
 * size, then at random places, and its map must cover it without a gap and call zeros only what is. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/mem.h"
#include "block/image.h"
#include "block/trust.h"
#include "block/view.h"

struct want {
	const unsigned char *bytes;
	uint64_t len;
};

static int fail(const char *name, const char *what, uint64_t off)
{
	printf("%s: %s at %llu\n", name, what, (unsigned long long)off);
	return -1;
}

static int compare_at(struct view *view, const char *name, const struct want *want, uint64_t off, size_t len)
{
	auto_free unsigned char *buf = malloc(len);
	int err = view_read(view, buf, len, off);

	if (err < 0)
		return fail(name, strerror(-err), off);
	for (size_t i = 0; i < len; i++) {
		if (buf[i] != want->bytes[off + i])
			return fail(name, "differs", off + i);
	}
	return 0;
}

static int compare_reads(struct view *view, const char *name, const struct want *want)
{
	for (uint64_t off = 0, len; off < want->len; off += len) {
		len = 1 + (uint64_t)random() % (random() % 2 ? 300000 : 5000);
		len = len < want->len - off ? len : want->len - off;
		if (compare_at(view, name, want, off, len) < 0)
			return -1;
	}
	for (int i = 0; i < 40; i++) {
		uint64_t off = (uint64_t)random() % want->len;
		uint64_t len = 1 + (uint64_t)random() % 10000;

		if (compare_at(view, name, want, off, len < want->len - off ? len : want->len - off) < 0)
			return -1;
	}
	return 0;
}

static int check_map(struct view *view, const char *name, const struct want *want)
{
	struct extent extent;

	for (uint64_t off = 0; off < want->len; off += extent.len) {
		int err = view_map(view, off, want->len - off, &extent);

		if (err < 0)
			return fail(name, strerror(-err), off);
		if (extent.guest_off != off || extent.len == 0 || extent.len > want->len - off)
			return fail(name, "the map has a gap", off);
		if (extent.kind == EXTENT_DATA || extent.kind == EXTENT_COMPRESSED)
			continue;
		for (uint64_t i = off; i < off + extent.len; i++) {
			if (want->bytes[i])
				return fail(name, "the map says zeros of data", i);
		}
	}
	return 0;
}

static int compare(struct image_cache *cache, const char *image, const char *snapshot, const char *raw)
{
	char name[2 * PATH_MAX + 2];
	struct disk_source source = {.path = image, .format = IMAGE_RAW, .snapshot = snapshot};
	struct view *view = NULL;
	struct reason why = {""};
	char magic[4] = "";
	struct want want;
	auto_close int image_fd = open(image, O_RDONLY | O_CLOEXEC);
	auto_close int raw_fd = open(raw, O_RDONLY | O_CLOEXEC);

	snprintf(name, sizeof(name), "%s@%s", image, snapshot ? snapshot : "-");
	if (image_fd < 0 || raw_fd < 0 || read(image_fd, magic, 4) != 4)
		return fail(name, "can't be read", 0);
	if (!memcmp(magic, "QFI\xfb", 4))
		source.format = IMAGE_QCOW2;
	want.len = (uint64_t)lseek(raw_fd, 0, SEEK_END);
	want.bytes = mmap(NULL, want.len, PROT_READ, MAP_PRIVATE, raw_fd, 0);

	if (view_open(cache, &source, &view, &why) < 0) {
		printf("%s: %s\n", name, why.text);
		return -1;
	}
	int ret = 0;

	if (view_virtual_size(view) != want.len)
		ret = fail(name, "has another size", view_virtual_size(view));
	if (!ret)
		ret = random() % 2 ? compare_reads(view, name, &want) : check_map(view, name, &want);
	if (!ret)
		ret = compare_reads(view, name, &want);
	if (!ret)
		ret = check_map(view, name, &want);
	view_put(view);
	munmap((void *)want.bytes, want.len);
	return ret;
}

int main(int argc, char **argv)
{
	char line[3 * PATH_MAX], image[PATH_MAX], snapshot[256], raw[PATH_MAX];
	struct image_cache *cache = NULL;
	struct trust *trust = NULL;
	unsigned nr = 0, nr_bad = 0;

	if (argc != 3 || trust_new(&trust) < 0 || trust_add(trust, argv[1], NULL) < 0 ||
	    image_cache_new(trust, 0, &cache) < 0)
		return 2;
	srandom((unsigned)strtoul(argv[2], NULL, 10));
	while (fgets(line, sizeof(line), stdin)) {
		if (sscanf(line, "%4095s %255s %4095s", image, snapshot, raw) != 3)
			return 2;
		nr++;
		nr_bad += compare(cache, image, strcmp(snapshot, "-") ? snapshot : NULL, raw) < 0;
	}
	image_cache_free(cache);
	trust_free(trust);
	printf("%u views, %u differ\n", nr, nr_bad);
	return nr_bad ? 1 : 0;
}
