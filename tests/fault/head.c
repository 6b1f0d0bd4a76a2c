/* The block layer on a disk that fails: every write path of heads, overlays, merges and flat copies, stopped or failed at each of its steps in each way.
 * limit: 240
 * nightly: 7200
 *
 * A scenario is a script of what a guest and its manager do. What must be there afterwards is told by it: a sector holds what the last operation before the
 * last flush left there, or what a later one did. head [SCENARIO [KIND [NTH]]]; fault/common/matrix.h says more. */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/file.h"
#include "block/fill.h"
#include "block/merge.h"
#include "block/trust.h"
#include "common/matrix.h"

#define SECTOR 512u
#define KIB    (1024 / SECTOR)
#define MIB    (1024 * KIB)

/* The sectors that anybody writes to: those at the disk's beginning, and windows far behind, each under an L2 table of its own. */
#define NEAR	    (2 * MIB)
#define WINDOW	    128u
#define NR_WINDOWS  10u
#define WINDOW_STEP (4ull << 30)
#define NR_SLOTS    (NEAR + NR_WINDOWS * WINDOW)
#define FAR(window) (NEAR + (window) * WINDOW)
#define ALL_SIZE    ((NR_WINDOWS + 1) * WINDOW_STEP)

enum what {
	END,
	WRITE,	 /* sectors FIRST to FIRST + NR */
	DISCARD,
	SHARE,
	ALLOCATE,
	RESIZE,	 /* to BYTES */
	FLUSH,
	REOPEN,
	FREEZE,	 /* a new overlay above */
	ADOPT,	 /* over the base */
	PULL,	 /* FIRST layers: the first half of the disk, or with NR the rest too */
	REBASE,	 /* after a pull of FIRST layers: they are deleted */
	PUSH,	 /* the top layer into the one below */
	FULL,	 /* a raw file of it */
};
struct op {
	enum what what;
	unsigned first, nr;
	uint64_t bytes;
};

/* Where a script starts. */
struct script {
	const char *name;
	bool base;	/* there is a raw file beneath */
	bool raw;	/* the head is one */
	bool small;	/* clusters of 16 KiB, made by QEMU */
	uint64_t size;	/* of the disk */
	uint64_t file_size; /* the file is that long, and was left dirty */
	unsigned nr_prepared; /* operations that are done before */
	const struct op *ops;
};

/* What is promised: of each sector the number of the last operation, counted from 1, that is stable; the disk's size. */
struct told {
	uint32_t settled[NR_SLOTS];
	uint32_t top;		  /* layer */
	uint32_t size_op;	  /* the size is that after this one */
	uint64_t size;
	uint64_t filled;	  /* of a flat copy: bytes that are stable */
	bool is_full;
};
_Static_assert(sizeof(struct told) <= sizeof((struct promise){0}.told), "it fits");

static const struct script *script;
static const char *where; /* the directory */
static int dir_fd;
static struct trust *trust;
static struct image_cache *cache;
static struct head *head;
static unsigned top;	       /* the layer that HEAD is */
static uint32_t current[NR_SLOTS]; /* as settled, but not stable yet */
static struct told told;
static struct promise *promise; /* NULL: while things are prepared */
static char bytes[NR_SLOTS * SECTOR];
static bool must_succeed;

/* --- the model ----------------------------------------------------------------------------------------------------------------- */

__attribute__((noreturn, format(printf, 1, 2))) static void fail(const char *fmt, ...)
{
	va_list ap;
	va_start(ap, fmt);
	printf("%s: ", script->name);
	vprintf(fmt, ap);
	printf("\n");
	va_end(ap);
	fflush(stdout);
	exit(1);
}

static unsigned nr_ops(void)
{
	unsigned nr = 0;
	while (script->ops[nr].what != END)
		nr++;
	return nr;
}

static uint64_t offset_of(unsigned slot)
{
	return slot < NEAR ? (uint64_t)slot * SECTOR : (1 + (slot - NEAR) / WINDOW) * WINDOW_STEP + (slot - NEAR) % WINDOW * SECTOR;
}

/* Sectors from SLOT on that lie side by side. */
static unsigned nr_together(unsigned slot)
{
	return slot < NEAR ? NEAR - slot : WINDOW - (slot - NEAR) % WINDOW;
}

#define BASE 0xffffffffu
static void stamp(char *sector, uint32_t value, uint32_t slot)
{
	for (unsigned i = 0; i < SECTOR; i += 8) {
		memcpy(sector + i, &value, 4);
		memcpy(sector + i + 4, &slot, 4);
	}
}

/* What the disk has at the beginning: the base is as long as can be, a disk that was shorter doesn't show the rest of it when it grows. */
static void base_value(char *sector, unsigned slot)
{
	if (script->base && offset_of(slot) < script->size)
		stamp(sector, BASE, slot);
	else
		memset(sector, 0, SECTOR);
}

/* Whether operation I changes SLOT, and to what. */
static bool changes(unsigned i, unsigned slot, char *sector)
{
	const struct op *op = &script->ops[i];
	bool inside = slot >= op->first && slot < op->first + op->nr;
	memset(sector, 0, SECTOR);
	switch (op->what) {
	case WRITE:
		stamp(sector, i + 1, slot);
		return inside;
	case DISCARD: return inside;
	case RESIZE: return offset_of(slot) >= op->bytes;
	case SHARE:
		base_value(sector, slot);
		return inside;
	case ADOPT:
		base_value(sector, slot);
		return true;
	case ALLOCATE:
	case FLUSH:
	case REOPEN:
	case FREEZE:
	case PULL:
	case REBASE:
	case PUSH:
	case FULL:
	case END: break;
	}
	return false;
}

/* Whether SLOT may hold WHAT, operation FLOOR (from 1) or none having been the last to be sure of, before CEILING. */
static bool is_allowed(unsigned slot, const char *what, uint32_t floor, unsigned ceiling)
{
	char want[SECTOR];
	for (unsigned i = ceiling; i-- > (floor ? floor - 1 : 0);)
		if (changes(i, slot, want) && memcmp(want, what, SECTOR) == 0)
			return true;
	if (script->ops[0].what == ADOPT) /* nothing lies beneath before */
		memset(want, 0, SECTOR);
	else
		base_value(want, slot);
	return !floor && memcmp(want, what, SECTOR) == 0;
}

static void judge(const char *all, uint64_t size, const uint32_t *floors, unsigned ceiling, const char *who)
{
	for (unsigned s = 0; s < NR_SLOTS; s++) {
		const char *what = all + (size_t)s * SECTOR;
		uint32_t value[2];
		memcpy(value, what, sizeof value);
		if (offset_of(s) < size && !is_allowed(s, what, floors[s], ceiling))
			fail("%s: sector %u holds %u/%u, is to be no older than operation %u", who, s, value[0], value[1], floors[s]);
	}
}

/* Operation I is done. */
static void note_changes(unsigned i)
{
	char sector[SECTOR];
	for (unsigned s = 0; s < NR_SLOTS; s++)
		if (changes(i, s, sector))
			current[s] = i + 1;
}

static void settle(unsigned i)
{
	memcpy(told.settled, current, sizeof current);
	told.top = top;
	told.size = head ? head_virtual_size(head) : told.size;
	told.size_op = i + 1;
	if (promise) {
		memcpy(promise->told, &told, sizeof told);
		matrix_promised(promise);
	}
}

/* --- files ------------------------------------------------------------------------------------------------------------------------ */

static const char *layer_name(unsigned layer)
{
	static char names[4][20];
	static unsigned turn;
	char *name = names[turn++ % 4];
	snprintf(name, sizeof names[0], script->raw ? "l%u.raw" : "l%u.qcow2", layer);
	return name;
}

static const char *path_of(const char *name)
{
	static char paths[4][4200];
	static unsigned turn;
	char *path = paths[turn++ % 4];
	snprintf(path, sizeof paths[0], "%s/%s", where, name);
	return path;
}

__attribute__((format(printf, 1, 2))) static int shell(const char *fmt, ...)
{
	char cmd[9000];
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(cmd, sizeof cmd, fmt, ap);
	va_end(ap);
	return system(cmd);
}

static int open_view(const char *name, enum image_format format, struct view **ret)
{
	struct reason why = {""};
	return view_open(cache, &(struct disk_source){path_of(name), format, NULL}, ret, &why);
}

/* What the file of LAYER says that lies beneath it. */
static int open_below(unsigned layer, struct view **ret)
{
	struct view *view = NULL;
	*ret = NULL;
	int err = open_view(layer_name(layer), IMAGE_QCOW2, &view);
	if (!err)
		err = view_open_backing(cache, view_layer(view, 0), ret, NULL);
	view_put(view);
	return err;
}

static int open_head(void)
{
	const char *name = layer_name(top);
	struct view *below = NULL;
	if (script->raw)
		return head_open_raw(dir_fd, name, path_of(name), &head, NULL);
	int err = open_below(top, &below);
	if (!err)
		err = head_open(dir_fd, name, path_of(name), below, &head, NULL);
	view_put(below);
	return err;
}

static int close_head(void)
{
	int err = head_close(head);
	head = NULL;
	return err;
}

static const struct script *all_scripts; /* main() says which */

static void enter(const char *dir)
{
	for (script = all_scripts; strcmp(script->name, matrix_scenario()->name) != 0;)
		script++;
	where = dir;
	dir_fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (dir_fd < 0 || trust_new(&trust) || trust_add(trust, dir, NULL) || image_cache_new(trust, 0, &cache))
		fail("can't begin");
}

static void leave(void)
{
	image_cache_free(cache);
	trust_free(trust);
	close(dir_fd);
}

/* --- operations -------------------------------------------------------------------------------------------------------------------- */

static int do_freeze(void)
{
	struct overlay_spec spec = {head_virtual_size(head), layer_name(top), IMAGE_QCOW2};
	int err = close_head();
	if (err)
		return err;
	unlinkat(dir_fd, layer_name(top + 1), 0); /* of an attempt before */
	err = overlay_create(dir_fd, layer_name(top + 1), &spec, 0600);
	if (!err)
		err = dir_sync(dir_fd);
	if (!err)
		top++;
	return err;
}

static int do_adopt(void)
{
	struct view *base = NULL;
	int err = open_view("base.raw", IMAGE_RAW, &base);
	if (!err)
		err = head_adopt(head, base, &(struct overlay_spec){view_virtual_size(base), "base.raw", IMAGE_RAW});
	view_put(base);
	return err;
}

static int do_rebase(unsigned nr_layers)
{
	struct view *rest = NULL;
	bool raw = top == nr_layers; /* what is left is the base */
	const char *name = !raw ? layer_name(top - nr_layers - 1) : script->base ? "base.raw" : NULL;
	int err = name ? open_view(name, raw ? IMAGE_RAW : IMAGE_QCOW2, &rest) : 0;
	if (!err)
		err = head_rebase(head, rest, name, raw ? IMAGE_RAW : IMAGE_QCOW2);
	view_put(rest);
	for (unsigned i = 1; i <= nr_layers && !err; i++)
		unlinkat(dir_fd, layer_name(top - i), 0);
	return err;
}

static int absorb(struct view *above)
{
	struct view *below = NULL;
	struct head *into = NULL;
	const char *name = layer_name(top - 1);
	int err = open_below(top - 1, &below);
	if (!err)
		err = head_open_frozen(dir_fd, name, path_of(name), below, &into, NULL);
	view_put(below);
	if (err)
		return err;
	err = head_absorb(into, above, 1, 0, view_virtual_size(above), NULL);
	int close_err = head_close(into);
	return err ? err : close_err;
}

static int do_push(void)
{
	struct view *above = NULL;
	struct stat st;
	int err = close_head();
	if (!err && fstatat(dir_fd, layer_name(top - 1), &st, 0) < 0)
		err = -errno;
	if (!err)
		err = open_view(layer_name(top), IMAGE_QCOW2, &above);
	if (!err)
		err = view_lock(above, NULL);
	if (!err) {
		err = image_cache_expect_changes(cache, st.st_dev, st.st_ino, true);
		if (!err)
			err = absorb(above);
		image_cache_expect_changes(cache, st.st_dev, st.st_ino, false);
		view_unlock(above);
	}
	view_put(above);
	if (!err && renameat(dir_fd, layer_name(top - 1), dir_fd, layer_name(top)) < 0)
		err = -errno;
	return err ? err : dir_sync(dir_fd);
}

static int checkpoint(void *ctx, uint64_t off)
{
	(void)ctx;
	told.filled = off;
	settle(nr_ops());
	return 0;
}

/* From the last checkpoint on. */
static int fill(void)
{
	struct view *view = NULL;
	int fd = open(path_of("full.raw"), O_RDWR | O_CLOEXEC);
	int err = fd < 0 ? -errno : open_view(layer_name(top), IMAGE_QCOW2, &view);
	if (!err)
		err = view_fill_raw(view, fd, &(struct fill_spec){.from = told.filled, .checkpoint = checkpoint}, NULL);
	view_put(view);
	close(fd);
	return err;
}

static int do_full(void)
{
	int err = close_head();
	disk_hurry(4); /* many checkpoints */
	if (!err)
		err = fill();
	if (!err)
		told.is_full = true;
	return err;
}

static int write_slots(unsigned i)
{
	const struct op *op = &script->ops[i];
	for (unsigned k = 0; k < op->nr; k++)
		changes(i, op->first + k, bytes + (size_t)k * SECTOR);
	return head_write(head, bytes, (size_t)op->nr * SECTOR, offset_of(op->first));
}

static int share_slots(const struct op *op)
{
	struct view *below = head_below(head);
	int err = head_share(head, below, offset_of(op->first), (uint64_t)op->nr * SECTOR);
	view_put(below);
	return err;
}

static int do_op(unsigned i)
{
	const struct op *op = &script->ops[i];
	int err = head ? 0 : open_head();
	if (err)
		return err;
	switch (op->what) {
	case WRITE: return write_slots(i);
	case DISCARD: return head_discard(head, offset_of(op->first), (uint64_t)op->nr * SECTOR);
	case SHARE: return share_slots(op);
	case ALLOCATE: return head_preallocate(head, offset_of(op->first), (uint64_t)op->nr * SECTOR);
	case RESIZE: return head_resize(head, op->bytes);
	case FLUSH: return head_flush(head);
	case REOPEN:
		err = close_head();
		return err ? err : open_head();
	case FREEZE: return do_freeze();
	case ADOPT: return do_adopt();
	case PULL: return head_pull(head, op->first, op->nr ? NEAR / 2 * SECTOR : 0, op->nr ? UINT64_MAX : NEAR / 2 * SECTOR, NULL);
	case REBASE: return do_rebase(op->first);
	case PUSH: return do_push();
	case FULL: return do_full();
	case END: break;
	}
	return 0;
}

static bool makes_stable(enum what what)
{
	return what == FLUSH || what == REOPEN || what == FREEZE || what == REBASE || what == PUSH || what == FULL;
}

static void read_slots(char *to, struct head *from)
{
	for (unsigned s = 0; s < NR_SLOTS; s += nr_together(s)) {
		int err = head_read(from, to + (size_t)s * SECTOR, (size_t)nr_together(s) * SECTOR, offset_of(s));
		if (err)
			fail("sector %u can't be read: %s", s, strerror(-err));
	}
}

/* In memory all is there still, whatever has failed. */
static void verify(unsigned i)
{
	if (!head)
		return;
	read_slots(bytes, head);
	judge(bytes, head_virtual_size(head), current, i + 1, "in memory");
}

/* A sync of the head's file has failed (I7). */
static bool sync_failed(void)
{
	const char *name = NULL;
	if (!disk_struck(&name) || !strstr(name, ": sync"))
		return false;
	return strncmp(name, "overlay creation", 16) != 0 && strncmp(name, "full", 4) != 0 && strncmp(name, "repair", 6) != 0 && strncmp(name, "directory", 9) != 0;
}

/* Closed after a sync that failed, it is opened again by the next operation, and finds in the page cache what the disk may not have. Where nothing but
 * writing has happened since what is stable, that means what it would have meant. */
static bool goes_on_reopened(unsigned i)
{
	for (unsigned k = told.size_op; k <= i; k++)
		switch (script->ops[k].what) {
		case WRITE:
		case DISCARD:
		case ALLOCATE:
		case FLUSH: break;
		default: return false;
		}
	memcpy(current, told.settled, sizeof current);
	return true;
}

/* False: that's the end. */
static bool survive(unsigned i, int err)
{
	const char *name = NULL;
	bool read = disk_struck(&name) && strcmp(name, "unnamed") == 0;
	if (!must_succeed && !disk_struck(NULL))
		fail("operation %u fails: %s", i + 1, strerror(-err));
	if (must_succeed)
		fail("operation %u still fails when there is space again: %s", i + 1, strerror(-err));
	if (!read)
		verify(i);
	if (sync_failed()) {
		if (!head)
			return false;
		if (head_flush(head) == 0)
			fail("a flush after a failed sync says that all is well");
		if (close_head() == 0)
			fail("a close after a failed sync says that all is well");
		return goes_on_reopened(i);
	}
	if (!head) { /* what a close couldn't keep is lost, and it has said so */
		memcpy(current, told.settled, sizeof current);
		return err == -ENOSPC;
	}
	return true;
}

static void run_ops(unsigned first, unsigned end)
{
	for (unsigned i = first; i < end; i++) {
		int err = do_op(i);
		enum what what = script->ops[i].what;
		bool alive = !err || survive(i, err), needed = what == PULL || what == REBASE || what == ADOPT;
		if (!alive || (needed && err && err != -ENOSPC)) /* what follows would mean something else */
			return;
		if (err == -ENOSPC) {
			disk_disarm();
			must_succeed = true;
			bool flush = script->ops[i].what == FLUSH;
			err = flush ? err : do_op(i); /* of a flush what comes after matters */
			if (err && !flush)
				fail("operation %u fails when there is space again: %s", i + 1, strerror(-err));
		}
		if (err)
			continue;
		note_changes(i);
		if (makes_stable(script->ops[i].what))
			settle(i);
	}
}

static void close_all(void)
{
	if (!head)
		return;
	told.size = head_virtual_size(head);
	int err = close_head();
	if (!err)
		settle(nr_ops());
	else if (must_succeed)
		fail("it can't be closed when there is space again: %s", strerror(-err));
	else if (!disk_struck(NULL))
		fail("it can't be closed: %s", strerror(-err));
}

/* --- the beginning ------------------------------------------------------------------------------------------------------------------ */

static void make_base(void)
{
	int fd = open(path_of("base.raw"), O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
	for (unsigned s = 0; s < NR_SLOTS; s++) {
		char sector[SECTOR];
		stamp(sector, BASE, s);
		if (fd < 0 || file_write(fd, sector, SECTOR, offset_of(s)))
			fail("the base");
	}
	if (ftruncate(fd, (off_t)(script->small ? ALL_SIZE : script->size)) < 0)
		fail("the base");
	close(fd);
}

static void make_dirty(void)
{
	if (truncate(path_of(layer_name(0)), (off_t)script->file_size) < 0 ||
	    shell("printf '\\021' | dd of='%s' bs=1 seek=79 conv=notrunc status=none", path_of(layer_name(0))))
		fail("a file that was left dirty");
}

static void make_head(void)
{
	struct overlay_spec spec = {script->size, script->base ? "base.raw" : NULL, IMAGE_RAW};
	const char *path = path_of(layer_name(0));
	int err = 0;
	if (script->ops[0].what == ADOPT)
		spec.backing_name = NULL;
	if (script->raw)
		err = shell("truncate -s %llu '%s'", (unsigned long long)script->size, path);
	else if (script->small)
		err = shell("qemu-img create -q -f qcow2 -o extended_l2=on,cluster_size=16k %s '%s' %llu", spec.backing_name ? "-b base.raw -F raw" : "", path,
			    (unsigned long long)script->size);
	else
		err = overlay_create(dir_fd, layer_name(0), &spec, 0600);
	if (err)
		fail("the head: %d", err);
	if (script->file_size)
		make_dirty();
}

static void prepare(const char *dir)
{
	enter(dir);
	if (script->base)
		make_base();
	make_head();
	if (shell(": >'%s'", path_of("full.raw")))
		fail("a file");
	must_succeed = true;
	run_ops(0, script->nr_prepared);
	close_all();
	leave();
}

/* What is known without a word: that which was prepared. */
static void start_model(void)
{
	memset(&told, 0, sizeof told);
	memset(current, 0, sizeof current);
	told.size = script->size;
	top = 0;
	for (unsigned i = 0; i < script->nr_prepared; i++) {
		note_changes(i);
		top += script->ops[i].what == FREEZE;
	}
	memcpy(told.settled, current, sizeof current);
	told.top = top;
}

static void run(const char *dir, struct promise *p)
{
	enter(dir);
	start_model();
	promise = p;
	settle(0);
	must_succeed = false;
	run_ops(script->nr_prepared, nr_ops());
	close_all();
	leave();
}

/* --- the end ------------------------------------------------------------------------------------------------------------------------- */

static char others[NR_SLOTS * SECTOR];

static bool size_is_allowed(uint64_t size)
{
	bool found = size == told.size;
	for (unsigned i = told.size_op ? told.size_op - 1 : 0; script->ops[i].what != END && !found; i++) {
		const struct op *op = &script->ops[i];
		uint64_t end = op->nr ? offset_of(op->first + op->nr - 1) + SECTOR : 0;
		found = (op->what == RESIZE && size == op->bytes) || (op->what == WRITE && size == end) || (op->what == ADOPT && size == NEAR * SECTOR);
	}
	return found;
}

/* Bytes of a raw file or, by the library, of an image. */
static void read_file(const char *name, char *to)
{
	int fd = open(path_of(name), O_RDONLY | O_CLOEXEC);
	for (unsigned s = 0; s < NR_SLOTS; s += nr_together(s))
		if (fd < 0 || file_read_padded(fd, to + (size_t)s * SECTOR, (size_t)nr_together(s) * SECTOR, offset_of(s)))
			fail("%s can't be read", name);
	close(fd);
}

/* What QEMU reads, as the image was left. */
static bool read_by_qemu(char *to)
{
	const char *name = layer_name(top), *format = script->raw ? "raw" : "qcow2";
	unlinkat(dir_fd, "out.raw", 0);
	if (shell("cd '%s' && qemu-img convert -f %s -O raw %s out.raw", where, format, name))
		fail("QEMU can't read it");
	read_file("out.raw", to);
	unlinkat(dir_fd, "out.raw", 0);
	return true;
}

/* QEMU's own repair, of a copy. */
static void repair_by_qemu(void)
{
	const char *name = layer_name(top);
	if (shell("cd '%s' && cp --sparse=always %s again.qcow2 && qemu-io -f qcow2 -c quit again.qcow2 >out.txt 2>&1 && { qemu-img check -f qcow2 again.qcow2 >>out.txt 2>&1; "
		  "r=$?; test $r = 0 -o $r = 3 || { cat out.txt; false; }; }",
		  where, name))
		fail("QEMU can't open it for writing, or finds it damaged then");
	unlinkat(dir_fd, "again.qcow2", 0);
}

static void check_by_qemu(void)
{
	if (shell("qemu-img check -f qcow2 '%s' >'%s/out.txt' 2>&1 || { cat '%s/out.txt'; false; }", path_of(layer_name(top)), where, where))
		fail("qemu-img check");
}

/* Refcounts of clusters that aren't there are 0: whoever makes the file longer believes them. */
static void check_refcounts_behind(void)
{
	struct {
		be64 reftable_offset;
		be32 clusters;
	} __attribute__((packed)) place;
	be32 bits;
	static be64 table[1 << 17];
	static be16 block[1 << 16];
	int fd = open(path_of(layer_name(top)), O_RDONLY | O_CLOEXEC);
	uint64_t end = (uint64_t)lseek(fd, 0, SEEK_END);
	if (fd < 0 || file_read_padded(fd, &bits, 4, 20) || file_read_padded(fd, &place, sizeof place, 48))
		fail("the header");
	size_t cluster = (size_t)1 << be32_get(bits), nr = cluster / 2;
	size_t len = be32_get(place.clusters) * cluster < sizeof table ? be32_get(place.clusters) * cluster : sizeof table;
	if (file_read_padded(fd, table, len, be64_get(place.reftable_offset)))
		fail("the refcount table");
	for (size_t i = 0; i < len / 8; i++) {
		if (!be64_get(table[i]) || (i + 1) * nr * cluster <= end)
			continue;
		if (file_read_padded(fd, block, cluster, be64_get(table[i])))
			fail("a refcount block");
		for (size_t k = 0; k < nr; k++)
			if ((i * nr + k) * cluster >= end && be16_get(block[k]))
				fail("a cluster behind the file's end has refcount %u", be16_get(block[k]));
	}
	close(fd);
}

/* I5: what was behind the end is zeros when the disk grows. */
static void check_growth(uint64_t size)
{
	if (size == ALL_SIZE || script->file_size)
		return;
	if (head_resize(head, ALL_SIZE))
		fail("it can't grow");
	read_slots(others, head);
	for (unsigned s = 0; s < NR_SLOTS; s++)
		if (offset_of(s) >= size && (others[(size_t)s * SECTOR] || memcmp(others + (size_t)s * SECTOR, others + (size_t)s * SECTOR + 1, SECTOR - 1)))
			fail("sector %u, behind the old end, isn't zeros", s);
}

/* I5: what is allocated of the subcluster with the disk's end is zeros behind it. */
static void check_end(uint64_t size)
{
	be64 longer = be64_make((size + 4095) / 4096 * 4096);
	char tail[4096];
	struct view *view = NULL;
	if (shell("cp --sparse=always '%s' '%s'", path_of(layer_name(top)), path_of("longer.qcow2")))
		fail("a copy");
	int fd = open(path_of("longer.qcow2"), O_WRONLY | O_CLOEXEC);
	if (fd < 0 || file_write(fd, &longer, sizeof longer, 24) || open_view("longer.qcow2", IMAGE_QCOW2, &view))
		fail("a longer copy");
	size_t len = (size_t)(be64_get(longer) - size);
	if (view_read(view, tail, len, size))
		fail("a longer copy can't be read");
	for (size_t i = 0; i < len; i++)
		if (tail[i])
			fail("there are bytes behind the disk's end, at %llu", (unsigned long long)(size + i));
	view_put(view);
	close(fd);
	unlinkat(dir_fd, "longer.qcow2", 0);
}

static void check_copy(void)
{
	if (!told.is_full && fill())
		fail("the copy doesn't go on");
	read_file("full.raw", others);
	if (memcmp(others, bytes, (size_t)NEAR * SECTOR) != 0)
		fail("the copy differs");
}

static bool has_copy(void)
{
	return script->ops[nr_ops() - 1].what == FULL;
}

static void check_head(unsigned dice)
{
	uint64_t size = 0;
	bool by_qemu = dice % 4 == 0 && read_by_qemu(others);
	if (dice % 4 == 1 && !script->raw)
		repair_by_qemu();
	int err = open_head();
	if (err)
		fail("it doesn't open: %s", strerror(-err));
	size = head_virtual_size(head);
	if (!size_is_allowed(size))
		fail("its size is %llu, was %llu", (unsigned long long)size, (unsigned long long)told.size);
	read_slots(bytes, head);
	judge(bytes, size, told.settled, nr_ops(), "after it");
	for (unsigned s = 0; s < NR_SLOTS && by_qemu; s++)
		if (offset_of(s) < size && memcmp(bytes + (size_t)s * SECTOR, others + (size_t)s * SECTOR, SECTOR) != 0)
			fail("QEMU reads something else in sector %u", s);
	if (dice % 4 == 2)
		check_growth(size);
	if (close_head())
		fail("it doesn't close");
	if (dice % 4 == 3 && !script->base && !script->raw && !script->file_size)
		check_end(size);
}

static void enter_promised(const char *dir, const struct promise *p)
{
	enter(dir);
	start_model();
	const struct told *said = (const struct told *)(const void *)p->told;
	if (said->size_op)
		told = *said;
	top = told.top;
	promise = NULL;
}

static void check(const char *dir, const struct promise *p, bool cut)
{
	(void)cut;
	enter_promised(dir, p);
	unsigned dice = matrix_dice() / 7;
	check_head(dice);
	if (has_copy())
		check_copy();
	if (!script->raw) {
		check_by_qemu();
		check_refcounts_behind();
	}
	leave();
}

/* Something that the script would have written, after all that was promised. */
static int write_later(unsigned dice)
{
	unsigned nr = 0, later[100];
	for (unsigned i = told.size_op > script->nr_prepared ? told.size_op : script->nr_prepared; i < nr_ops(); i++)
		if (script->ops[i].what == WRITE && nr < 100)
			later[nr++] = i;
	return nr && dice % 4 ? write_slots(later[dice / 4 % nr]) : 0;
}

/* The next one to open the head after a killed one: repaired, it is what it was, and goes on. */
static void restart(const char *dir, const struct promise *p)
{
	head = NULL;
	must_succeed = false;
	enter_promised(dir, p);
	int err = open_head();
	if (err)
		fail("it doesn't open after a kill: %s", strerror(-err));
	read_slots(bytes, head);
	judge(bytes, head_virtual_size(head), told.settled, nr_ops(), "after a kill");
	if ((err = write_later(matrix_dice() / 11)) || (err = head_flush(head)))
		fail("it can't be written to after a kill: %s", strerror(-err));
	if (close_head())
		fail("it doesn't close after a kill");
	if (has_copy() && !told.is_full && fill())
		fail("the copy doesn't go on after a kill");
	leave();
}

/* --- scripts ------------------------------------------------------------------------------------------------------------------------------ */

static const struct op write_ops[] = {
	{WRITE, 3, 2, 0},	    /* inside a subcluster */
	{WRITE, 70 * KIB, 1, 0},
	{FLUSH, 0, 0, 0},
	{WRITE, 4 * KIB, 8, 0},	    /* a whole one */
	{WRITE, 100 * KIB + 1, 300 * KIB, 0}, /* clusters, and parts of the first and last */
	{DISCARD, 120 * KIB + 5, 200 * KIB, 0},
	{WRITE, FAR(0) + 7, 20, 0}, /* new tables */
	{WRITE, FAR(1), 64, 0},
	{WRITE, FAR(2) + 1, 8, 0},
	{FLUSH, 0, 0, 0},
	{WRITE, FAR(0) + 40, 9, 0}, /* known ones */
	{WRITE, 2, 30, 0},
	{DISCARD, FAR(1), 64, 0},
	{WRITE, 1024 * KIB, 64 * KIB, 0},
	{WRITE, FAR(3) + 9, 30, 0},
	{WRITE, FAR(4) + 9, 30, 0},
	{FLUSH, 0, 0, 0},
	{WRITE, FAR(3) + 60, 30, 0},
	{WRITE, FAR(4) + 60, 30, 0},
	{DISCARD, 0, 64 * KIB, 0},
	{WRITE, 16 * KIB, 16 * KIB + 3, 0},
	{FLUSH, 0, 0, 0},
	{REOPEN, 0, 0, 0},
	{WRITE, 500 * KIB, 1, 0},
	{WRITE, FAR(5), 1, 0},
	{DISCARD, 300 * KIB, 400 * KIB, 0},
	{FLUSH, 0, 0, 0},
	{WRITE, 301 * KIB, 10 * KIB, 0},
	{END, 0, 0, 0}};
static const struct op alone_ops[] = {
	{ALLOCATE, 0, 300 * KIB, 0},
	{FLUSH, 0, 0, 0},
	{WRITE, 5, 20, 0},
	{WRITE, 200 * KIB, 200 * KIB, 0},
	{FLUSH, 0, 0, 0},
	{DISCARD, 8, 200 * KIB, 0},
	{WRITE, 100 * KIB + 3, 4, 0},
	{ALLOCATE, 64 * KIB, 1024 * KIB, 0},
	{WRITE, 900 * KIB, 9, 0},
	{FLUSH, 0, 0, 0},
	{ALLOCATE, FAR(2), WINDOW, 0},
	{WRITE, FAR(2) + 3, 9, 0},
	{DISCARD, 900 * KIB, 2, 0},
	{REOPEN, 0, 0, 0},
	{WRITE, FAR(2) + 3, 3, 0},
	{DISCARD, FAR(2), WINDOW, 0},
	{WRITE, 100 * KIB, 100, 0},
	{RESIZE, 0, 0, 100 * 1024 + SECTOR}, /* inside a subcluster of it */
	{FLUSH, 0, 0, 0},
	{WRITE, 9, 1, 0},
	{END, 0, 0, 0}};
static const struct op grow_ops[] = {
	{WRITE, 10, 100, 0},
	{FLUSH, 0, 0, 0},
	{WRITE, FAR(0) + 3, 30, 0},
	{WRITE, FAR(2) + 9, 1, 0},
	{WRITE, FAR(0) + 40, 60, 0},
	{RESIZE, 0, 0, 6 * WINDOW_STEP},
	{WRITE, FAR(3), 5, 0},
	{FLUSH, 0, 0, 0},
	{WRITE, 64 * KIB, 64 * KIB, 0},
	{RESIZE, 0, 0, 80 * 1024 + SECTOR}, /* inside a subcluster of it */
	{RESIZE, 0, 0, 1 << 20},
	{FLUSH, 0, 0, 0},
	{WRITE, 81 * KIB, 9, 0},
	{WRITE, FAR(7), 5, 0},
	{REOPEN, 0, 0, 0},
	{RESIZE, 0, 0, 0},
	{WRITE, 5, 9, 0},
	{FLUSH, 0, 0, 0},
	{WRITE, 64 * KIB, 9, 0},
	{END, 0, 0, 0}};
static const struct op long_ops[] = {{WRITE, 9, 50, 0}, {FLUSH, 0, 0, 0}, {WRITE, FAR(2), 50, 0}, {END, 0, 0, 0}};
static const struct op blocks_ops[] = {
	{WRITE, 9, 50 * KIB, 0},
	{FLUSH, 0, 0, 0},
	{WRITE, 64 * KIB, 128 * KIB, 0},
	{WRITE, 256 * KIB, 128 * KIB, 0},
	{FLUSH, 0, 0, 0},
	{REOPEN, 0, 0, 0},
	{WRITE, 512 * KIB, 30, 0},
	{END, 0, 0, 0}};
static const struct op freeze_ops[] = {
	{WRITE, 5, 100, 0},
	{DISCARD, 64 * KIB, 64 * KIB, 0},
	{FREEZE, 0, 0, 0},
	{WRITE, 50, 30, 0},
	{DISCARD, 7, 9, 0},
	{FLUSH, 0, 0, 0},
	{WRITE, 60 * KIB, 70, 0},
	{FREEZE, 0, 0, 0},
	{WRITE, 9, 9, 0},
	{FLUSH, 0, 0, 0},
	{END, 0, 0, 0}};
static const struct op pull_ops[] = {
	{WRITE, 5, 1000, 0},
	{DISCARD, 64 * KIB, 64 * KIB, 0},
	{FREEZE, 0, 0, 0},
	{WRITE, 500 * KIB, 200 * KIB, 0},
	{WRITE, 1800 * KIB, 9, 0},
	{FREEZE, 0, 0, 0},
	{WRITE, 3, 2, 0}, /* prepared until here */
	{PULL, 1, 0, 0},
	{WRITE, 600 * KIB + 1, 40, 0},
	{PULL, 1, 1, 0},
	{REBASE, 1, 0, 0},
	{WRITE, 700, 9, 0},
	{FLUSH, 0, 0, 0},
	{WRITE, 9, 9, 0},
	{REOPEN, 0, 0, 0},
	{DISCARD, 66 * KIB, 9 * KIB, 0},
	{PULL, 1, 0, 0},
	{PULL, 1, 1, 0},
	{REBASE, 1, 0, 0},
	{WRITE, 1000, 30, 0},
	{FLUSH, 0, 0, 0},
	{END, 0, 0, 0}};
static const struct op push_ops[] = {
	{WRITE, 5, 1000, 0},
	{DISCARD, 64 * KIB, 64 * KIB, 0},
	{FREEZE, 0, 0, 0},
	{WRITE, 500 * KIB, 200 * KIB, 0},
	{DISCARD, 3, 40 * KIB, 0},
	{WRITE, 1000, 80, 0},
	{FLUSH, 0, 0, 0}, /* prepared until here */
	{WRITE, 66 * KIB, 1, 0},
	{PUSH, 0, 0, 0},
	{WRITE, 3, 9, 0},
	{FLUSH, 0, 0, 0},
	{WRITE, 3, 2, 0},
	{END, 0, 0, 0}};
static const struct op adopt_ops[] = {
	{ADOPT, 0, 0, 0},
	{WRITE, 9, 100, 0},
	{WRITE, 300 * KIB, 64 * KIB, 0},
	{FLUSH, 0, 0, 0},
	{SHARE, 8, 300 * KIB, 0},
	{WRITE, 310 * KIB, 9, 0},
	{FLUSH, 0, 0, 0},
	{WRITE, 12, 1, 0},
	{END, 0, 0, 0}};
static const struct op raw_ops[] = {
	{WRITE, 5, 100, 0},
	{ALLOCATE, 300 * KIB, 300 * KIB, 0},
	{FLUSH, 0, 0, 0},
	{WRITE, 50, 64 * KIB, 0},
	{DISCARD, 7, 30 * KIB, 0},
	{RESIZE, 0, 0, 600 * 1024},
	{FLUSH, 0, 0, 0},
	{WRITE, 700 * KIB, 9, 0},
	{RESIZE, 0, 0, 40 * 1024},
	{REOPEN, 0, 0, 0},
	{WRITE, 20 * KIB, 90, 0},
	{FLUSH, 0, 0, 0},
	{END, 0, 0, 0}};
static const struct op full_ops[] = {
	{WRITE, 5, 1000, 0},
	{DISCARD, 64 * KIB, 64 * KIB, 0},
	{WRITE, 1100 * KIB, 300, 0},
	{FREEZE, 0, 0, 0},
	{WRITE, 500 * KIB, 200 * KIB, 0},
	{DISCARD, 1000 * KIB, 900 * KIB, 0},
	{WRITE, 1500 * KIB, 77, 0},
	{FLUSH, 0, 0, 0}, /* prepared until here */
	{FULL, 0, 0, 0},
	{END, 0, 0, 0}};

static const struct script scripts[] = {
	{"write", true, false, false, ALL_SIZE, 0, 0, write_ops},
	{"small", true, false, true, ALL_SIZE, 0, 0, write_ops},
	{"alone", false, false, false, ALL_SIZE, 0, 0, alone_ops},
	{"grow", true, false, true, 2 * WINDOW_STEP, 0, 0, grow_ops},
	{"long", false, false, true, ALL_SIZE, (256ull << 30) + 16384, 0, long_ops},
	{"blocks", false, false, true, ALL_SIZE, (128ull << 20) - 262144, 0, blocks_ops},
	{"freeze", true, false, false, NEAR * SECTOR, 0, 0, freeze_ops},
	{"pull", true, false, true, NEAR * SECTOR, 0, 7, pull_ops},
	{"push", true, false, false, NEAR * SECTOR, 0, 7, push_ops},
	{"adopt", true, false, false, NEAR * SECTOR, 0, 0, adopt_ops},
	{"raw", false, true, false, 1 << 20, 0, 0, raw_ops},
	{"full", true, false, false, NEAR * SECTOR, 0, 8, full_ops},
};
#define NR_SCRIPTS (sizeof scripts / sizeof *scripts)

static const char *const must[] = {
	"allocation: write", "allocation: sync", "data", "copy-on-write fill", "hole", "preallocation", "L2 tables (new): write", "table space", "L2 tables", "L1", "file's end",
	"virtual size", "flush barrier: sync", "L1 move: write", "L1 move: sync", "refcounts", "repair/refcount table", "repair/refcount table move: write",
	"repair/refcount table move: sync", "close: write", "close: sync", "overlay creation: create", "overlay creation: write",
	"overlay creation: sync", "overlay exchange: rename", "overlay exchange: sync", "freeze: sync", "merge pull", "rebase: write", "rebase: sync",
	"merge push/data", "merge push/hole", "merge push: rename", "merge push: sync", "raw data", "raw flush: sync", "raw size", "raw hole", "full raw: write",
	"full raw: sync", "full raw: size", NULL};

int main(int argc, char **argv)
{
	struct scenario scenarios[NR_SCRIPTS];
	all_scripts = scripts;
	for (size_t i = 0; i < NR_SCRIPTS; i++)
		scenarios[i] = (struct scenario){scripts[i].name, prepare, run, check, restart};
	return matrix_main(argc, argv, scenarios, NR_SCRIPTS, 40, must);
}
