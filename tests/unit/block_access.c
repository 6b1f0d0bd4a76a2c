/* What a view made of several files may show: never more than each file and directory grants, to anybody. */
#include "block/access.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "tests/unit/block_test.h"

#define ALICE 1000u
#define BOB   1001u
#define KVM   36u
#define STAFF 50u

static mode_t over(uid_t uid, gid_t gid, mode_t mode, uid_t base_uid, gid_t base_gid, mode_t base_mode)
{
	struct access access;
	struct stat leaf = {.st_uid = uid, .st_gid = gid, .st_mode = S_IFREG | mode};
	struct stat base = {.st_uid = base_uid, .st_gid = base_gid, .st_mode = base_mode};
	access_init(&access, &leaf);
	access_restrict(&access, &base);
	return access.mode;
}

static int differs(mode_t want, mode_t got)
{
	if (want != got)
		printf("want %04o, got %04o\n", (unsigned)want, (unsigned)got);
	return want != got;
}

static void test_classes(void)
{
	CHECK(differs(0444, over(ALICE, KVM, 0644, 0, 0, S_IFREG | 0644)));
	CHECK(differs(0000, over(ALICE, KVM, 0644, 0, 0, S_IFREG | 0600)));
	CHECK(differs(0400, over(ALICE, KVM, 0644, ALICE, 0, S_IFREG | 0600)));
	/* Alice's file is the group's, which doesn't make her one of it. */
	CHECK(differs(0040, over(ALICE, KVM, 0644, 0, KVM, S_IFREG | 0640)));
	/* A group that is shut out while others aren't: who isn't known not to be in it is shut out. */
	CHECK(differs(0000, over(ALICE, KVM, 0644, 0, STAFF, S_IFREG | 0604)));
	CHECK(differs(0004, over(ALICE, KVM, 0644, 0, KVM, S_IFREG | 0604)));
	CHECK(differs(0444, over(ALICE, KVM, 0644, 0, 0, S_IFDIR | 0711)));
	CHECK(differs(0000, over(ALICE, KVM, 0644, BOB, BOB, S_IFDIR | 0700)));
	CHECK(differs(0440, over(ALICE, KVM, 0644, ALICE, KVM, S_IFDIR | 0750)));
}

static mode_t by_path(const char *name, const struct stat *st)
{
	struct access access = {.uid = st->st_uid, .gid = st->st_gid, .mode = 0444};
	struct access_path last = ACCESS_PATH_INIT;
	access_restrict_by_path(&access, &last, path_of(name), st);
	access_restrict_by_path(&access, &last, path_of(name), st); /* by the directory that is known now */
	access_path_done(&last);
	return access.mode;
}

static int chmod_of(const char *name, mode_t mode)
{
	return chmod(path_of(name), mode);
}

/* user::rwx user:1001:--- group::r-x mask::rwx other::r-x, as the kernel has it in its attribute */
static const unsigned char acl[] = {2, 0, 0, 0, 1, 0, 7, 0, 255, 255, 255, 255, 2, 0, 0, 0, 0xe9, 3, 0, 0, 4, 0, 5, 0,
				    255, 255, 255, 255, 16, 0, 7, 0, 255, 255, 255, 255, 32, 0, 5, 0, 255, 255, 255, 255};

static int set_acl(const char *name)
{
	return setxattr(path_of(name), "system.posix_acl_access", acl, sizeof acl, 0);
}

static void test_paths(void)
{
	struct stat st, other;
	CHECK(run("cd %s && mkdir -p outer/open outer/other && echo a >outer/open/a && echo b >outer/other/a && chmod 755 . outer outer/open outer/other", dir));
	CHECK(lstat(path_of("outer/open/a"), &st) + lstat(path_of("outer/other/a"), &other));
	CHECK(differs(0444, by_path("outer/open/a", &st)));
	CHECK(chmod_of("outer", 0700));
	CHECK(differs(0400, by_path("outer/open/a", &st)));
	CHECK(chmod_of("outer", 0711));
	CHECK(differs(0444, by_path("outer/open/a", &st)));
	/* It isn't the file that was read: whose directories these are says nothing. */
	CHECK(differs(0400, by_path("outer/open/a", &other)));
	CHECK(run("cd %s/outer && mv open really && ln -s really open", dir));
	CHECK(differs(0400, by_path("outer/open/a", &st)));
	CHECK(run("cd %s/outer && rm open && mv really open", dir));
	if (set_acl("outer/open/a") < 0 && errno == EOPNOTSUPP)
		return; /* a filesystem without them */
	CHECK(differs(0400, by_path("outer/open/a", &st)));
	CHECK(removexattr(path_of("outer/open/a"), "system.posix_acl_access"));
	CHECK(differs(0444, by_path("outer/open/a", &st)));
	CHECK(set_acl("outer"));
	CHECK(differs(0400, by_path("outer/open/a", &st)));
}

int main(void)
{
	char made[150];
	snprintf(made, sizeof made, "%s/block-access.XXXXXX", getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp");
	if (!mkdtemp(made) || !realpath(made, dir))
		return 1;
	test_classes();
	test_paths();
	return run("rm -r %s", dir);
}
