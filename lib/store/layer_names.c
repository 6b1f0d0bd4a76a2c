/* What layers are called, and where they lie. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <uuid/uuid.h>

#include "base/file.h"
#include "base/mem.h"
#include "base/name.h"
#include "base/strbuf.h"
#include "store/layers.h"
#include "store/store_internal.h"

#define BACKING_NAME_MAX 1023 /* qcow2 specification, "backing_file_size" */
#define UUID_TEXT_LEN	 36

void layer_name_new(char *name, const char *ending)
{
	uuid_t uuid;
	uuid_generate(uuid);
	uuid_unparse_lower(uuid, name);
	strcat(name, ending);
}

/* The length of the UUID that NAME begins with, 0 where it doesn't. */
static size_t uuid_len(const char *name)
{
	char text[UUID_TEXT_LEN + 1];
	uuid_t uuid;
	if (strlen(name) < UUID_TEXT_LEN)
		return 0;
	memcpy(text, name, UUID_TEXT_LEN);
	text[UUID_TEXT_LEN] = '\0';
	return uuid_parse(text, uuid) == 0 ? UUID_TEXT_LEN : 0;
}

static const char *ending_of(const char *name)
{
	const char *dot = strrchr(name, '.');
	return dot ? dot : "";
}

enum image_format layer_format(const char *name)
{
	return strcmp(ending_of(name), ".qcow2") == 0 ? IMAGE_QCOW2 : IMAGE_RAW;
}

/* In the store's own directory all names are made by layer_name_new(). */
static bool is_own_name(const char *name)
{
	size_t len = uuid_len(name);
	return len && (strcmp(name + len, ".qcow2") == 0 || strcmp(name + len, ".raw") == 0);
}

bool layer_name_is_valid(const char *name)
{
	const char *slash = strchr(name, '/');
	char pool[POOL_NAME_MAX + 1];
	if (!slash)
		return is_own_name(name);
	if (strlen(name) >= LAYER_NAME_MAX || slash - name > POOL_NAME_MAX)
		return false;
	snprintf(pool, sizeof pool, "%.*s", (int)(slash - name), name);
	return name_check(pool) == 0 && name_check(slash + 1) == 0;
}

bool layer_is_leftover_name(const char *name)
{
	size_t len = uuid_len(name);
	if (!len)
		return *name == '.' && uuid_len(name + 1); /* temporary names */
	return strcmp(name + len, ".raw.part") == 0 || is_own_name(name);
}

/* What of PATH comes after DIR and the slash; NULL when it isn't below. */
static const char *path_below(const char *path, const char *dir)
{
	size_t len = strlen(dir);
	if (len && dir[len - 1] == '/')
		len--;
	return strncmp(path, dir, len) == 0 && path[len] == '/' ? path + len + 1 : NULL;
}

/* --- where they lie ------------------------------------------------------------------------------------------------------ */

struct layer_place layer_place(const struct store *store, const char *name)
{
	const char *slash = strchr(name, '/');
	if (!slash)
		return (struct layer_place){store->layers_fd, name, store->layers_dir};
	const struct pool *pool = pool_find(store, name, (size_t)(slash - name));
	return pool ? (struct layer_place){pool->dirfd, slash + 1, pool->dir} : (struct layer_place){-1, slash + 1, "(no such pool)"};
}

char *layer_path(const struct store *store, const char *name)
{
	struct layer_place at = layer_place(store, name);
	char *path = NULL;
	return asprintf(&path, "%s/%s", at.dir, at.name) < 0 ? NULL : path;
}

bool layers_share_dir(const char *a, const char *b)
{
	const char *slash_a = strchr(a, '/'), *slash_b = strchr(b, '/');
	if (!slash_a || !slash_b)
		return slash_a == slash_b;
	return slash_a - a == slash_b - b && memcmp(a, b, (size_t)(slash_a - a)) == 0;
}

void layer_name_beside(char name[LAYER_NAME_MAX], const char *other, const char *ending)
{
	const char *slash = strchr(other, '/');
	size_t len = slash ? (size_t)(slash + 1 - other) : 0;
	memcpy(name, other, len);
	layer_name_new(name + len, ending);
}

void layer_temporary_name(char temporary[LAYER_NAME_MAX + 8], const char *name)
{
	const char *slash = strchr(name, '/');
	snprintf(temporary, LAYER_NAME_MAX + 8, ".%s.m", slash ? slash + 1 : name);
}

static bool is_pool_file(struct pool *pool, const char *real_path, char name[LAYER_NAME_MAX])
{
	const char *file = path_below(real_path, pool->dir);
	if (!file || strchr(file, '/') || strlen(pool->name) + strlen(file) + 2 > LAYER_NAME_MAX || !pool_owns(pool, file))
		return false;
	snprintf(name, LAYER_NAME_MAX, "%s/%s", pool->name, file);
	return true;
}

/* The pool has it by a link, perhaps. */
static bool is_pool_device(const struct store *store, const char *real_path, char name[LAYER_NAME_MAX])
{
	struct stat st;
	char file[POOL_FILE_MAX + 1];
	if (!store->nr_pools || lstat(real_path, &st) < 0 || !S_ISBLK(st.st_mode))
		return false;
	for (size_t i = 0; i < store->nr_pools; i++) {
		if (!pool_find_device(&store->pools[i], st.st_rdev, file))
			continue;
		snprintf(name, LAYER_NAME_MAX, "%s/%s", store->pools[i].name, file);
		return true;
	}
	return false;
}

bool layer_of_path(const struct store *store, const char *real_path, char name[LAYER_NAME_MAX])
{
	const char *own = store->layers_dir ? path_below(real_path, store->layers_dir) : NULL;
	if (own && is_own_name(own)) {
		snprintf(name, LAYER_NAME_MAX, "%s", own);
		return true;
	}
	for (size_t i = 0; i < store->nr_pools; i++)
		if (is_pool_file(&store->pools[i], real_path, name))
			return true;
	return store->allow_devices && is_pool_device(store, real_path, name);
}

/* TO as seen from the directory FROM_DIR; both absolute and real. */
static int relative_path(const char *from_dir, const char *to, char **ret)
{
	size_t common = 0; /* up to and with the last slash that both have */
	size_t i = 0;
	for (; from_dir[i] && from_dir[i] == to[i]; i++)
		if (to[i] == '/')
			common = i + 1;
	if (!from_dir[i] && to[i] == '/')
		common = i + 1;
	struct strbuf b = {0};
	if (common <= strlen(from_dir)) {
		strbuf_addf(&b, "../");
		for (const char *p = from_dir + common; *p; p++)
			if (*p == '/')
				strbuf_addf(&b, "../");
	}
	strbuf_addf(&b, "%s", to + common);
	return strbuf_take(&b, ret, NULL);
}

/* Whether FILE moves along when the tree that holds the store is moved. */
static bool moves_with_store(struct store *store, const char *real_path)
{
	auto_free char *parent = strdup(store->store_dir);
	if (!parent)
		return false;
	char *slash = strrchr(parent, '/');
	if (slash)
		*slash = '\0';
	bool source_holds_store = path_below(store->store_dir, store->source_dir);
	return path_below(real_path, store->store_dir) || (*parent && path_below(real_path, parent)) ||
	       (source_holds_store && path_below(real_path, store->source_dir));
}

int layer_backing_name(struct store *store, const char *layer, const char *real_path, char **ret, struct reason *why)
{
	auto_free char *name = NULL;
	const char *dir = layer_place(store, layer).dir;
	bool is_beside = path_below(real_path, dir) && !strchr(path_below(real_path, dir), '/');
	int err = 0;
	if (is_beside || (!strchr(layer, '/') && moves_with_store(store, real_path)))
		err = relative_path(dir, real_path, &name);
	else if (!(name = strdup(real_path)))
		err = -ENOMEM;
	if (!err && strlen(name) > BACKING_NAME_MAX)
		err = reason_set(why, -ENAMETOOLONG, "%s: too long for the header of a qcow2 file (%d bytes)", name, BACKING_NAME_MAX);
	if (!err)
		*ret = take_ptr(name);
	return err;
}

