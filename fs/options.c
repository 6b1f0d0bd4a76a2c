#include "fs/options.h"

#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/mem.h"
#include "fs/mountpoint.h"

#define DEFAULT_THREADS 8
#define INDEX_BYTES_MIN (1u << 20)

enum { KEY_TRUST, KEY_POOL, KEY_CLONE, KEY_KEEP, KEY_RO, KEY_ALLOW_OTHER, KEY_DEBUG, KEY_DISCARD };

#define FIELD(template, field, value) {template, offsetof(struct options, field), value}

static const struct fuse_opt option_table[] = {
	FIELD("-f", foreground, 1),
	FIELD("-h", show_help, 1),
	FIELD("--help", show_help, 1),
	FIELD("-V", show_version, 1),
	FIELD("--version", show_version, 1),
	FIELD("store=%s", store, 0),
	FIELD("snapshots=%s", snapshots, 0),
	FIELD("block_devices", allow_devices, 1),
	FIELD("max_threads=%u", max_threads, 0),
	FIELD("index=%s", index, 0),
	FUSE_OPT_KEY("trust=", KEY_TRUST),
	FUSE_OPT_KEY("pool=", KEY_POOL),
	FUSE_OPT_KEY("clone=", KEY_CLONE),
	FUSE_OPT_KEY("ro", KEY_RO),
	FUSE_OPT_KEY("allow_other", KEY_ALLOW_OTHER),
	FUSE_OPT_KEY("-d", KEY_DEBUG),
	FUSE_OPT_KEY("debug", KEY_DEBUG),
	/* Words of /etc/fstab that mean something to mount(8), systemd or nobody. */
	FUSE_OPT_KEY("defaults", KEY_DISCARD),
	FUSE_OPT_KEY("auto", KEY_DISCARD),
	FUSE_OPT_KEY("noauto", KEY_DISCARD),
	FUSE_OPT_KEY("user", KEY_DISCARD),
	FUSE_OPT_KEY("user=", KEY_DISCARD),
	FUSE_OPT_KEY("users", KEY_DISCARD),
	FUSE_OPT_KEY("nouser", KEY_DISCARD),
	FUSE_OPT_KEY("owner", KEY_DISCARD),
	FUSE_OPT_KEY("group", KEY_DISCARD),
	FUSE_OPT_KEY("nofail", KEY_DISCARD),
	FUSE_OPT_KEY("_netdev", KEY_DISCARD),
	FUSE_OPT_KEY("comment=", KEY_DISCARD),
	FUSE_OPT_END,
};

static int add_trust(struct options *options, const char *dir)
{
	if (mem_grow(&options->trust, &options->cap_trust, options->nr_trust + 1, sizeof *options->trust) < 0)
		return -1;
	options->trust[options->nr_trust] = strdup(dir);
	return options->trust[options->nr_trust++] ? 0 : -1;
}

static int add_trusts(struct options *options, const char *dirs)
{
	int err = 0;
	auto_free char *copy = strdup(dirs);
	char *rest = copy;
	for (const char *dir = strsep(&rest, ":"); dir && !err; dir = strsep(&rest, ":"))
		if (*dir)
			err = add_trust(options, dir);
	return copy ? err : -1;
}

/* NAME:DIR. */
static int add_pool(struct options *options, const char *text)
{
	const char *colon = strchr(text, ':');
	if (!colon || colon == text || !colon[1]) {
		fprintf(stderr, "vmsnapfs: pool=%s: not a name and a directory, as in pool=fast:/mnt/nvme\n", text);
		return -1;
	}
	if (mem_grow(&options->pools, &options->cap_pools, options->nr_pools + 1, sizeof *options->pools) < 0)
		return -1;
	struct pool_config *pool = &options->pools[options->nr_pools++];
	*pool = (struct pool_config){strndup(text, (size_t)(colon - text)), strdup(colon + 1)};
	return pool->name && pool->dir ? 0 : -1;
}

static int take_clone_mode(struct options *options, const char *mode)
{
	if (strcmp(mode, "full") != 0 && strcmp(mode, "thin") != 0) {
		fprintf(stderr, "vmsnapfs: clone=%s: full (copies that depend on nothing) or thin (overlays)\n", mode);
		return -1;
	}
	options->clone_full = strcmp(mode, "full") == 0;
	return 0;
}

static int take_word(struct options *options, const char *word)
{
	char **slot = !options->source ? &options->source : !options->mountpoint ? &options->mountpoint : NULL;
	if (!slot) {
		fprintf(stderr, "vmsnapfs: what is '%s'? usage: vmsnapfs [-o OPTION,...] SOURCE MOUNTPOINT\n", word);
		return -1;
	}
	*slot = strdup(word);
	return *slot ? 0 : -1;
}

/* 0: dealt with; 1: kept for fuse_session_new; -1: refused. */
static int take_option(void *data, const char *arg, int key, struct fuse_args *outargs)
{
	struct options *options = data;
	(void)outargs;
	switch (key) {
	case FUSE_OPT_KEY_NONOPT:
		return take_word(options, arg);
	case KEY_TRUST:
		return add_trusts(options, arg + strlen("trust="));
	case KEY_POOL:
		return add_pool(options, arg + strlen("pool="));
	case KEY_CLONE:
		return take_clone_mode(options, arg + strlen("clone="));
	case KEY_RO:
		options->read_only = 1;
		return 1;
	case KEY_ALLOW_OTHER:
		options->allow_other = 1;
		return 1;
	case KEY_DEBUG:
		options->debug = options->foreground = 1;
		return 1;
	case KEY_DISCARD:
		return 0;
	}
	return !strncmp(arg, "x-", 2) ? 0 : 1;
}

/* Names the mount after SOURCE in /proc/mounts; whoever may see it beside its owner, the kernel checks their rights. */
static int add_mount_options(struct options *options)
{
	char *names = NULL;
	auto_free char *fsname = NULL;
	if (asprintf(&fsname, "fsname=%s", options->source) < 0 || fuse_opt_add_opt(&names, "subtype=vmsnapfs") < 0 ||
	    fuse_opt_add_opt_escaped(&names, fsname) < 0 ||
	    (options->allow_other && fuse_opt_add_opt(&names, "default_permissions") < 0)) {
		free(names);
		return -ENOMEM;
	}
	/* Before the user's own, so that theirs count. */
	int err = fuse_opt_insert_arg(&options->args, 1, names) < 0 || fuse_opt_insert_arg(&options->args, 1, "-o") < 0;
	free(names);
	return err ? -ENOMEM : 0;
}

/* 64M, 1G, 300000K, 1048576. */
static int parse_index_size(struct options *options)
{
	static const char units[] = "KMGT";
	if (!options->index)
		return 0;
	char *end = NULL;
	errno = 0;
	unsigned long long n =
	    *options->index >= '0' && *options->index <= '9' ? strtoull(options->index, &end, 10) : 0;
	const char *unit = n && *end ? strchr(units, *end) : NULL;
	unsigned shift = unit ? 10 * (unsigned)(unit - units + 1) : 0;
	if (!n || errno || (*end && (!unit || end[1])) || n > SIZE_MAX >> shift || n << shift < INDEX_BYTES_MIN ||
	    n << shift > SIZE_MAX / 2) {
		fprintf(stderr, "vmsnapfs: index=%s: not a size of 1M or more, such as 64M or 1G\n", options->index);
		return -EINVAL;
	}
	options->index_bytes = (size_t)n << shift;
	return 0;
}

int options_parse(int argc, char **argv, struct options *ret)
{
	struct options options = {.args = FUSE_ARGS_INIT(argc, argv), .max_threads = DEFAULT_THREADS};
	int err = fuse_opt_parse(&options.args, &options, option_table, take_option) < 0 ? -EINVAL : 0;
	if (!err)
		err = parse_index_size(&options);
	if (!err && !options.show_help && !options.show_version) {
		if (!options.mountpoint) {
			fprintf(stderr, "usage: vmsnapfs [-o OPTION,...] [-f] SOURCE MOUNTPOINT\n"
					"       vmsnapfs --help\n");
			err = -EINVAL;
		} else {
			err = add_mount_options(&options);
		}
	}
	*ret = options;
	return err;
}

void options_help(void)
{
	printf("usage: vmsnapfs [-o OPTION,...] [-f] SOURCE MOUNTPOINT\n"
	       "\n"
	       "Shows the virtual machines in the directory SOURCE, and their snapshots as directories of flat raw disks.\n"
	       "mkdir and cp in MOUNTPOINT/clones make working virtual machines of them.\n"
	       "\n"
	       "    -f                     stay in the foreground\n"
	       "    -d                     the same, and print FUSE's messages\n"
	       "    -h, --help; -V, --version\n"
	       "\n"
	       "    -o store=DIR           where clones lie (SOURCE/.vmsnapfs)\n"
	       "    -o snapshots=DIR       libvirt's snapshot metadata, where it isn't beside the domain XML\n"
	       "    -o pool=NAME:DIR       a further directory for images, shown as MOUNTPOINT/pools/NAME; may be given several times\n"
	       "    -o clone=full|thin     what mkdir and cp make: copies that depend on nothing, or overlays (thin)\n"
	       "    -o trust=DIR[:DIR...]  follow the names of backing files into these directories, too\n"
	       "    -o block_devices       images may be block devices\n"
	       "    -o ro                  change nothing, not even clones\n"
	       "    -o allow_other         for all users, each with the rights that the images give\n"
	       "    -o max_threads=N       threads that serve requests (%d)\n"
	       "    -o index=SIZE          memory for the index of where chains have their data (64M)\n"
	       "\n"
	       "FUSE options:\n",
	       DEFAULT_THREADS);
	fuse_lowlevel_help();
}

/* --- directories ------------------------------------------------------------------------------------------------------ */

/* Makes *DIR absolute and real. */
static int make_real(char **dir)
{
	struct stat st;
	char *real = realpath(*dir, NULL);
	int err = !real || stat(real, &st) < 0 ? -errno : S_ISDIR(st.st_mode) ? 0 : -ENOTDIR;
	if (err) {
		fprintf(stderr, "vmsnapfs: %s: %s\n", *dir, strerror(-err));
		free(real);
		return err;
	}
	free(*dir);
	*dir = real;
	return 0;
}

/* The same for a directory that needn't be there yet. */
static int make_real_or_new(char **dir)
{
	struct stat st;
	if (stat(*dir, &st) == 0 || errno != ENOENT)
		return make_real(dir);
	size_t len = strlen(*dir);
	while (len > 1 && (*dir)[len - 1] == '/')
		(*dir)[--len] = '\0';
	const char *slash = strrchr(*dir, '/');
	auto_free char *parent = slash ? strndup(*dir, slash == *dir ? 1 : (size_t)(slash - *dir)) : strdup(".");
	int err = parent ? make_real(&parent) : -ENOMEM;
	if (err)
		return err;
	char *made;
	if (asprintf(&made, "%s/%s", strcmp(parent, "/") ? parent : "", slash ? slash + 1 : *dir) < 0)
		return -ENOMEM;
	free(*dir);
	*dir = made;
	return 0;
}

static int make_pool_real(struct pool_config *pool)
{
	char *dir = (char *)(uintptr_t)pool->dir;
	int err = make_real(&dir);
	pool->dir = dir;
	return err;
}

char *options_store_dir(const struct options *options)
{
	char *dir;
	if (options->store)
		return strdup(options->store);
	return asprintf(&dir, "%s/.vmsnapfs", options->source) < 0 ? NULL : dir;
}

/* One that can't be listed would be an empty mount. */
static int check_source(struct options *options)
{
	int err = make_real(&options->source);
	if (!err && access(options->source, R_OK | X_OK) < 0) {
		err = -errno;
		fprintf(stderr, "vmsnapfs: %s: %s\n", options->source, strerror(-err));
	}
	return err;
}

int options_check(struct options *options)
{
	int err = check_source(options);
	if (!err && options->store)
		err = make_real_or_new(&options->store);
	if (!err && options->snapshots)
		err = make_real(&options->snapshots);
	for (size_t i = 0; !err && i < options->nr_trust; i++)
		err = make_real(&options->trust[i]);
	for (size_t i = 0; !err && i < options->nr_pools; i++)
		err = make_pool_real(&options->pools[i]);
	if (err)
		return err;
	auto_free char *store_dir = options_store_dir(options);
	err = store_dir ? mountpoint_prepare(&options->mountpoint, options->source, store_dir) : -ENOMEM;
	for (size_t i = 0; !err && i < options->nr_pools; i++)
		err = mountpoint_check_apart(options->mountpoint, "pool", options->pools[i].dir);
	return err;
}

void options_done(struct options *options)
{
	free(options->source);
	free(options->mountpoint);
	free(options->store);
	free(options->index);
	free(options->snapshots);
	for (size_t i = 0; i < options->nr_trust; i++)
		free(options->trust[i]);
	free(options->trust);
	for (size_t i = 0; i < options->nr_pools; i++) {
		free((char *)(uintptr_t)options->pools[i].name);
		free((char *)(uintptr_t)options->pools[i].dir);
	}
	free(options->pools);
	fuse_opt_free_args(&options->args);
}
