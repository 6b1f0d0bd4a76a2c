/* limit: 300 nightly: 1800
 * Names that others give to files: of backing files and data files in headers, of disks in XML, of what is made in the mount. What is resolved lies below the
 * trusted directory and is what the kernel finds there; what is a name stays one. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "base/name.h"
#include "block/trust.h"
#include "common/fuzz.h"
#include "store/layers.h"
#include "store/manifest.h"

#define MEMORY_MAX (1u << 20)

static struct trust *trust;
static char inside[PATH_MAX]; /* trusted */

static void make_tree(void)
{
	static const char *const dirs[] = {"in", "in/a", "in/a/b", "in/never", "out"};
	static const char *const files[] = {"in/f", "in/a/f", "in/a/b/f", "in/never/f", "out/f", "in/json:f"};
	static const char *const links[][2] = {{"in/l", "a/b"},	      {"in/up", ".."},	       {"in/loop", "loop"},   {"in/a/far", "../../out/f"},
					       {"in/abs", "/"},	      {"in/a/self", "../a/./f"}, {"in/none", "nothing"}, {"in/nv", "never"},
					       {"in/dots", "a/../../in/a/b/../f"}};
	for (size_t i = 0; i < sizeof dirs / sizeof *dirs; i++)
		FUZZ_CHECK(mkdirat(fuzz_dirfd(), dirs[i], 0700) == 0);
	for (size_t i = 0; i < sizeof files / sizeof *files; i++)
		close(openat(fuzz_dirfd(), files[i], O_WRONLY | O_CREAT, 0600));
	for (size_t i = 0; i < sizeof links / sizeof *links; i++)
		FUZZ_CHECK(symlinkat(links[i][1], fuzz_dirfd(), links[i][0]) == 0);
	FUZZ_CHECK(mkfifoat(fuzz_dirfd(), "in/fifo", 0600) == 0);
	snprintf(inside, sizeof inside, "%s/in", fuzz_dir());
	fuzz_trust(inside);
	char never[PATH_MAX + 10];
	snprintf(never, sizeof never, "%s/never", inside);
	FUZZ_CHECK(trust_new(&trust) == 0 && trust_add(trust, inside, NULL) == 0 && trust_forbid(trust, never) == 0);
}

static bool is_below(const char *path, const char *dir)
{
	size_t len = strlen(dir);
	return strncmp(path, dir, len) == 0 && (path[len] == '/' || !path[len]);
}

static void resolve(const char *base, const char *name)
{
	char *path = NULL, full[2 * PATH_MAX + 2], *real = NULL;
	struct reason why = {""};
	struct stat got, expected;
	if (trust_resolve(trust, base, name, &path, NULL) == 0) {
		FUZZ_CHECK(is_below(path, inside) && !strstr(path, "/never") && !strstr(path, "/../"));
		free(path);
		path = NULL;
	}
	int fd = trust_open(trust, base, name, O_RDONLY, &path, &why);
	FUZZ_CHECK(fd >= 0 || why.text[0]);
	if (fd < 0)
		return;
	fuzz_end(); /* the kernel's own way may lead anywhere */
	snprintf(full, sizeof full, "%s/%s", *name == '/' ? "" : base, name);
	real = realpath(full, NULL);
	FUZZ_CHECK(fstat(fd, &got) == 0 && S_ISREG(got.st_mode) && is_below(path, inside));
	/* A name like f/.. is one here where the kernel sees no directory; never the other way. */
	FUZZ_CHECK(!real || (strcmp(real, path) == 0 && stat(real, &expected) == 0 && expected.st_ino == got.st_ino));
	free(real);
	free(path);
	close(fd);
}

static void check_names(const char *name)
{
	char *valid = name_make_valid(name), *final = name_final(name), *target = manifest_target_of(name);
	FUZZ_CHECK(valid && final && (!*name || name_check(valid) == 0));
	if (name_check(name) == 0)
		FUZZ_CHECK(strcmp(valid, name) == 0 && !strchr(name, '/') && !strchr(name, '\n') && *name != '.' && strlen(name) <= NAME_MAX &&
			   manifest_check_file_name(name) == 0);
	if (manifest_check_file_name(name) == 0)
		FUZZ_CHECK(*name && !strchr(name, '/') && strcmp(name, ".") != 0 && strcmp(name, "..") != 0 && strlen(name) <= NAME_MAX);
	FUZZ_CHECK(!target || (strncmp(name, target, strlen(target)) == 0 && strcmp(name + strlen(target), ".img") == 0));
	if (layer_name_is_valid(name))
		FUZZ_CHECK(*name != '/' && *name != '.' && strlen(name) < LAYER_NAME_MAX && !strstr(name, "/."));
	FUZZ_CHECK(!file_is_temporary(name) || *name == '.' || !strchr(name, '/'));
	free(valid);
	free(final);
	free(target);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char base[PATH_MAX];
	if (!trust)
		make_tree();
	if (!size)
		return -1;
	char *name = fuzz_text(data + 1, size - 1), full[2 * PATH_MAX];
	const char *where = data[0] & 1 ? "/a" : data[0] & 2 ? "/a/b" : data[0] & 4 ? "/l" : "";
	snprintf(base, sizeof base, "%.4000s%s", inside, where);
	fuzz_begin(MEMORY_MAX, 10, 100000);
	check_names(name);
	resolve(base, name);
	fuzz_begin(MEMORY_MAX, 10, 100000);
	if (size < 2000) {
		snprintf(full, sizeof full, "%.4000s/%s", inside, name);
		resolve(base, full);
	}
	fuzz_end();
	free(name);
	return 0;
}
