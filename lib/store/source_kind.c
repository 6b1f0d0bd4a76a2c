/* What kind of file one of SOURCE is: told by its name where that will do, else by its beginning. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/file.h"
#include "base/mem.h"
#include "meta/xml.h"
#include "store/found.h"
#include "store/source.h"
#include "store/store_internal.h"

/* The name of the root element, found without parsing: most XML files of a host are snapshots' metadata. False: it
 * isn't as simple as that. */
static bool sniff_root(const char *text, char name[32])
{
	const char *p = text;
	if (strncmp(p, "\xef\xbb\xbf", 3) == 0)
		p += 3;
	for (;;) {
		p += strspn(p, " \t\r\n");
		const char *end = strncmp(p, "<!--", 4) == 0 ? "-->" : strncmp(p, "<?", 2) == 0 ? "?>" : NULL;
		if (!end)
			break;
		p = strstr(p, end);
		if (!p)
			return false;
		p += strlen(end);
	}
	if (*p++ != '<')
		return false;
	size_t len = strcspn(p, " \t\r\n/>");
	if (!len || len >= 32 || *p == '!')
		return false;
	memcpy(name, p, len);
	name[len] = '\0';
	return true;
}

static int root_name(const char *text, size_t len, char name[32], struct reason *why)
{
	if (sniff_root(text, name))
		return 0;
	xmlDocPtr doc = NULL;
	int err = xml_parse(text, len, &doc, why);
	if (err)
		return err;
	snprintf(name, 32, "%s", (const char *)xmlDocGetRootElement(doc)->name);
	xmlFreeDoc(doc);
	return 0;
}

bool source_error_may_pass(int err)
{
	return err == -EIO || err == -ESTALE || err == -ETIMEDOUT || err == -EMFILE || err == -ENFILE;
}

static enum source_kind kind_after(int err)
{
	return source_error_may_pass(err) ? SOURCE_UNREAD : SOURCE_OTHER;
}

static enum source_kind classify_xml(struct store *store, const char *path, bool told)
{
	struct reason why = {0};
	struct stat st;
	auto_close int fd = source_open(path, &st);
	auto_free char *text = NULL;
	size_t len = 0;
	char name[32];
	int err = fd < 0 ? fd : file_load(fd, XML_TEXT_MAX, &text, &len);
	if (!err)
		err = root_name(text, len, name, &why);
	if (err && !told)
		store_event(store, NULL, "%s can't be read: %s; its VM isn't shown", path, *why.text ? why.text : strerror(-err));
	if (err)
		return kind_after(err);
	return strcmp(name, "domain") == 0 ? SOURCE_DOMAIN : SOURCE_OTHER;
}

static enum source_kind classify_by_magic(const char *path)
{
	char magic[4];
	struct stat st;
	auto_close int fd = source_open(path, &st);
	ssize_t n = fd < 0 ? fd : file_read(fd, magic, sizeof magic, 0);
	if (n < 0)
		return kind_after((int)n);
	return n == sizeof magic && memcmp(magic, "QFI\xfb", 4) == 0 ? SOURCE_IMAGE : SOURCE_OTHER;
}

static bool ends_with_xml(const char *path)
{
	size_t len = strlen(path);
	return len > 4 && strcmp(path + len - 4, ".xml") == 0;
}

enum source_kind source_classify(struct store *store, const char *path, bool told)
{
	const char *name = strrchr(path, '/') + 1;
	if (ends_with_xml(name))
		return classify_xml(store, path, told);
	return bare_is_image_name(name) ? SOURCE_IMAGE : classify_by_magic(path);
}
