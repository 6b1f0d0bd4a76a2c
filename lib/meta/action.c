#include "meta/action.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/strbuf.h"
#include "meta/action_text.h"

static const struct action_form {
	const char *name, *usage;
} forms[ACTION_KINDS] = {
	[ACTION_SNAPSHOT] = {"snapshot",
		"# NAME [DISK...] [description=TEXT]\n"
		"#   Takes a snapshot of all disks, or of those named (vda vdb); the others go on as they are and are in no\n"
		"#   directory of it. TEXT is the rest of the line. Names with blanks: \"in quotes\".\n"
		"# libvirt's <domainsnapshot> and oVirt's <snapshot> are taken, too.\n"},
	[ACTION_PREVIEW] = {"preview",
		"# SNAPSHOT\n"
		"# [SNAPSHOT] [config=SNAPSHOT] [memory=SNAPSHOT] [DISK=SNAPSHOT...] [DISK=none...]\n"
		"#   Makes the VM what a snapshot was, or a mix of several; all else stays. A disk can be left out. Memory only\n"
		"#   with its own configuration. The state before comes back by undo; commit keeps the new one.\n"
		"# oVirt's <action> is taken, too.\n"},
	[ACTION_COMMIT] = {"commit",
		"# commit [discard]\n"
		"#   Keeps what is previewed. The state before is kept as a snapshot before-restore-TIME; not so with discard.\n"},
	[ACTION_UNDO] = {"undo",
		"# undo\n"
		"#   Ends the preview: the state before is back, to the byte.\n"},
	[ACTION_RESTORE] = {"restore",
		"# SNAPSHOT [discard]\n"
		"#   Goes back to a snapshot; newer ones stay. The state before is kept as a snapshot before-restore-TIME,\n"
		"#   unless it equals the one that it started from; not so with discard. What preview takes is taken, too.\n"},
	[ACTION_DELETE] = {"delete",
		"# SNAPSHOT [merge | merge-force | discard | discard-force]\n"
		"#   Without a word, as rmdir: the snapshot goes, and nothing else changes.\n"
		"#   merge: the same, refused where nothing goes on from it, for its state would be lost.\n"
		"#   merge-force: where nothing goes on from it, its parent gets its state.\n"
		"#   discard: its state goes; refused if it has children. discard-force: they all go with it.\n"},
	[ACTION_CLONE] = {"clone",
		"# SNAPSHOT [NAME] [KEY=VALUE...] [DISK.KEY=VALUE...] [DISK=none...]\n"
		"#   Makes a VM clones/NAME (without NAME: copy_of_VM) of a snapshot. Keys, for all disks or for one (vda.format=raw):\n"
		"#   mode=thin|full        over the snapshot's images, or depending on nothing once a job is done (see jobs/)\n"
		"#   format=raw|qcow2  allocation=sparse|full  (raw, and allocation=full: mode=full)\n"
		"#   pool=POOL  volume=FILE  permissions=0640\n"
		"#   capacity=N[K|M|G|T]  shrink=yes|no        (smaller than the source only with shrink=yes)\n"
		"#   target=vdb  bus=virtio|scsi|sata|...  serial=keep|renew\n"
		"# [SNAPSHOT] [NAME] [KEY=VALUE...] libvirt's <domain> or oVirt's <vm> or <action>, on the same line, is taken, too;\n"
		"# [SNAPSHOT] [DISK] [pool=POOL] libvirt's <volume>: makes a volume in a pool.\n"},
	[ACTION_FLATTEN] = {"flatten",
		"# all\n"
		"# DISK...\n"
		"#   Makes the VM, or those disks of it, depend on no other VM's images: in the background, see jobs/.\n"},
};

const char *action_name(enum action_kind kind)
{
	return forms[kind].name;
}

const char *action_usage(enum action_kind kind)
{
	return forms[kind].usage;
}

enum action_kind action_kind_by_name(const char *name)
{
	for (int kind = ACTION_NONE + 1; kind < ACTION_KINDS; kind++)
		if (!strcmp(forms[kind].name, name))
			return kind;
	return ACTION_NONE;
}

/* --- commands in a stream of text ------------------------------------------------------------------------------------- */

static bool is_blank(char c)
{
	return c == ' ' || c == '\t' || c == '\r';
}

/* The end of the markup that begins at TEXT[OFF] ("<…>"), its effect on the depth in *DEPTH; LEN + 1: it isn't all there. */
static size_t markup_end(const char *text, size_t len, size_t off, long *depth)
{
	static const struct {
		const char *open, *close;
	} skipped[] = {{"<!--", "-->"}, {"<![CDATA[", "]]>"}, {"<?", "?>"}, {"<!", ">"}};
	for (size_t i = 0; i < sizeof skipped / sizeof *skipped; i++) {
		size_t open_len = strlen(skipped[i].open), close_len = strlen(skipped[i].close);
		if (len - off < open_len || memcmp(text + off, skipped[i].open, open_len) != 0)
			continue;
		const char *close = memmem(text + off + open_len, len - off - open_len, skipped[i].close, close_len);
		return close ? (size_t)(close - text) + close_len : len + 1;
	}
	char quote = '\0';
	for (size_t end = off + 1; end < len; end++) {
		if (quote || text[end] == '"' || text[end] == '\'') {
			quote = !quote ? text[end] : text[end] == quote ? '\0' : quote;
		} else if (text[end] == '>') {
			*depth += text[off + 1] == '/' ? -1 : text[end - 1] == '/' ? 0 : 1;
			return end + 1;
		}
	}
	return len + 1;
}

/* Where the document that begins at OFF ends: behind its root element. 0: not yet. It isn't checked here. */
static size_t document_end(const char *text, size_t len, size_t off)
{
	long depth = 0;
	while (off < len) {
		const char *tag = memchr(text + off, '<', len - off);
		if (!tag)
			return 0;
		off = (size_t)(tag - text);
		bool is_element = len - off > 1 && tag[1] != '!' && tag[1] != '?';
		off = markup_end(text, len, off, &depth);
		if (off > len)
			return 0;
		if (is_element && depth <= 0)
			return off;
	}
	return 0;
}

/* Whether the backslash at TEXT[OFF] keeps the character behind it from meaning anything. */
static bool is_escape(const char *text, size_t len, size_t off, char quote)
{
	return text[off] == '\\' && quote != '\'' && off + 1 < len && text[off + 1] != '\n';
}

/* Where a document begins behind the words of the line at OFF: at a word that begins with '<'. LEN: nowhere. */
static size_t document_behind_words(const char *text, size_t len, size_t off)
{
	char quote = '\0';
	bool in_word = false;
	if (text[off] == '#')
		return len;
	for (; off < len && text[off] != '\n'; off++) {
		if (text[off] == '<' && !in_word)
			return off;
		if (quote || text[off] == '"' || text[off] == '\'')
			quote = !quote ? text[off] : text[off] == quote ? '\0' : quote;
		in_word = quote || !is_blank(text[off]);
		off += is_escape(text, len, off, quote);
	}
	return len;
}

bool action_next(enum action_kind kind, const char *text, size_t len, bool last, size_t *ret_off, size_t *ret_len)
{
	size_t off = 0;
	while (off < len && (is_blank(text[off]) || text[off] == '\n'))
		off++;
	if (off == len)
		return false;
	const char *newline = memchr(text + off, '\n', len - off);
	size_t document = text[off] == '<' ? off : kind == ACTION_CLONE ? document_behind_words(text, len, off) : len;
	size_t end = document < len ? document_end(text, len, document) : newline ? (size_t)(newline - text) : 0;
	if (!end && !last)
		return false;
	*ret_off = off;
	*ret_len = (end ? end : len) - off;
	return true;
}

/* --- words ------------------------------------------------------------------------------------------------------------- */

void action_skip_blanks(const char **pos)
{
	while (is_blank(**pos))
		(*pos)++;
}

static int scan_word(const char **pos, struct strbuf *b, size_t *ret_key_len, struct reason *why)
{
	char quote = '\0';
	const char *p = *pos;
	for (; *p && (quote || !is_blank(*p)); p++) {
		if (*p == quote) {
			quote = '\0';
		} else if (!quote && (*p == '"' || *p == '\'')) {
			quote = *p;
		} else {
			if (*p == '=' && !quote && !*ret_key_len)
				*ret_key_len = b->len;
			if (*p == '\\' && quote != '\'' && p[1])
				p++;
			strbuf_add(b, p, 1);
		}
	}
	*pos = p;
	return quote ? reason_set(why, -EINVAL, "the quote %c isn't closed", quote) : 0;
}

int action_next_word(const char **pos, struct action_word *ret, struct reason *why)
{
	*ret = (struct action_word){0};
	action_skip_blanks(pos);
	if (!**pos)
		return 0;
	struct strbuf b = {0};
	int err = scan_word(pos, &b, &ret->key_len, why);
	if (!err)
		err = strbuf_take(&b, &ret->text, NULL);
	strbuf_done(&b);
	return err;
}

int action_set(char **ret, const char *text)
{
	char *copy = text ? strdup(text) : NULL;
	if (text && !copy)
		return -ENOMEM;
	free(*ret);
	*ret = copy;
	return 0;
}

int action_add_text(char ***list, size_t *nr, const char *text)
{
	char **grown = reallocarray(*list, *nr + 1, sizeof **list);
	char *copy = strdup(text);
	*list = grown ? grown : *list;
	if (!grown || !copy) {
		free(copy);
		return -ENOMEM;
	}
	grown[(*nr)++] = copy;
	return 0;
}

struct action_disk *action_add_change(struct action *action)
{
	struct action_disk *grown = reallocarray(action->changes, action->nr_changes + 1, sizeof *grown);
	if (!grown)
		return NULL;
	action->changes = grown;
	grown[action->nr_changes] = (struct action_disk){0};
	return &grown[action->nr_changes++];
}

/* --- lines -------------------------------------------------------------------------------------------------------------- */

/* The value is the rest of the line; in quotes, what is between them. */
static int parse_description(const char *pos, struct action *action, struct reason *why)
{
	struct action_word word = {0};
	const char *rest = pos;
	int err = 0;
	if (*pos == '"' || *pos == '\'') {
		err = action_next_word(&rest, &word, why);
		action_skip_blanks(&rest);
	}
	/* Anything behind the closing quote: it was no quote around the whole, but a part of the text. */
	if (!err)
		err = action_set(&action->description, word.text && !*rest ? word.text : pos);
	free(word.text);
	size_t len = action->description ? strlen(action->description) : 0;
	while (len && is_blank(action->description[len - 1]))
		action->description[--len] = '\0';
	return err;
}

static int parse_snapshot(const char *pos, struct action *action, struct reason *why)
{
	static const char key[] = "description=";
	int err = 0;
	while (!err) {
		action_skip_blanks(&pos);
		if (!strncmp(pos, key, sizeof key - 1))
			return parse_description(pos + sizeof key - 1, action, why);
		struct action_word word;
		err = action_next_word(&pos, &word, why);
		if (err || !word.text)
			return err;
		if (word.key_len) {
			err = reason_set(why, -EINVAL, "%s: expected NAME [DISK...] [description=TEXT]", word.text);
		} else if (!action->name) {
			action->name = take_ptr(word.text);
		} else {
			action->subset = true;
			err = action_add_text(&action->disks, &action->nr_disks, word.text);
		}
		free(word.text);
	}
	return err;
}

/* KEY=SNAPSHOT: of the configuration, the memory, or a disk. */
static int parse_change(struct action *action, const struct action_word *word, struct reason *why)
{
	auto_free char *key = strndup(word->text, word->key_len);
	const char *value = word->text + word->key_len + 1;
	if (!key)
		return -ENOMEM;
	if (!*value)
		return reason_set(why, -EINVAL, "%s= without a snapshot's name", key);
	if (!strcmp(key, "config"))
		return action_set(&action->config, value);
	if (!strcmp(key, "memory"))
		return action_set(&action->memory, strcmp(value, "none") ? value : NULL);
	for (size_t i = 0; i < action->nr_changes; i++)
		if (!strcmp(action->changes[i].disk, key))
			return reason_set(why, -EINVAL, "%s is named twice", key);
	struct action_disk *change = action_add_change(action);
	if (!change)
		return -ENOMEM;
	change->disk = take_ptr(key);
	return action_set(&change->snapshot, strcmp(value, "none") ? value : NULL);
}

static int parse_preview_word(struct action *action, struct action_word *word, struct reason *why)
{
	if (word->key_len)
		return parse_change(action, word, why);
	bool first = !action->snapshot && !action->config && !action->memory && !action->nr_changes;
	if (action->kind == ACTION_RESTORE && !first && !action->discard && !strcmp(word->text, "discard")) {
		action->discard = true;
		return 0;
	}
	if (action->snapshot)
		return reason_set(why, -EINVAL, "%s: expected %s, or config=SNAPSHOT memory=SNAPSHOT DISK=SNAPSHOT DISK=none", word->text,
				  action->kind == ACTION_RESTORE ? "SNAPSHOT [discard]" : "one SNAPSHOT");
	action->snapshot = take_ptr(word->text);
	return 0;
}

static int parse_preview(const char *pos, struct action *action, struct reason *why)
{
	for (;;) {
		struct action_word word;
		int err = action_next_word(&pos, &word, why);
		if (err || !word.text)
			return err;
		err = parse_preview_word(action, &word, why);
		free(word.text);
		if (err)
			return err;
	}
}

static int parse_delete(const char *pos, struct action *action, struct reason *why)
{
	static const char *const modes[] = {[ACTION_MERGE] = "merge", [ACTION_MERGE_FORCE] = "merge-force",
					    [ACTION_DISCARD] = "discard", [ACTION_DISCARD_FORCE] = "discard-force"};
	struct action_word snapshot = {0}, mode = {0}, more = {0};
	int err = action_next_word(&pos, &snapshot, why);
	action->snapshot = snapshot.text;
	if (!err)
		err = action_next_word(&pos, &mode, why);
	if (!err)
		err = action_next_word(&pos, &more, why);
	for (int i = ACTION_MERGE; mode.text && i <= ACTION_DISCARD_FORCE; i++)
		if (!strcmp(mode.text, modes[i]))
			action->delete = i;
	if (!err && (more.text || (mode.text && action->delete == ACTION_DROP)))
		err = reason_set(why, -EINVAL, "%s: expected SNAPSHOT [merge | merge-force | discard | discard-force]",
				 more.text ? more.text : mode.text);
	free(mode.text);
	free(more.text);
	return err;
}

/* "commit", "commit discard", "undo": the word is the file's own, so that there is one. */
static int parse_end(const char *pos, struct action *action, struct reason *why)
{
	const char *own = action_name(action->kind);
	bool may_discard = action->kind == ACTION_COMMIT, said = false;
	for (;;) {
		struct action_word word;
		int err = action_next_word(&pos, &word, why);
		if (err || !word.text)
			return err;
		bool is_own = !said && !strcmp(word.text, own), is_discard = may_discard && !action->discard && !strcmp(word.text, "discard");
		if (!is_own && !is_discard)
			err = reason_set(why, -EINVAL, "%s: expected %s%s", word.text, own, may_discard ? " [discard]" : "");
		said = true;
		action->discard = action->discard || is_discard;
		free(word.text);
		if (err)
			return err;
	}
}

/* A line without a word means nothing, so that all disks need one. */
static int parse_flatten(const char *pos, struct action *action, struct reason *why)
{
	bool all = false;
	for (;;) {
		struct action_word word;
		int err = action_next_word(&pos, &word, why);
		if (err || !word.text)
			return err;
		bool is_all = !strcmp(word.text, "all") || !strcmp(word.text, action_name(action->kind));
		if (word.key_len || all || (is_all && action->subset))
			err = reason_set(why, -EINVAL, "%s: expected all, or DISK...", word.text);
		else if (is_all)
			all = true;
		else
			err = action_add_text(&action->disks, &action->nr_disks, word.text);
		action->subset = !all;
		free(word.text);
		if (err)
			return err;
	}
}

static int parse_line(const char *line, struct action *action, struct reason *why)
{
	switch (action->kind) {
	case ACTION_SNAPSHOT:
		return parse_snapshot(line, action, why);
	case ACTION_PREVIEW:
	case ACTION_RESTORE:
		return parse_preview(line, action, why);
	case ACTION_COMMIT:
	case ACTION_UNDO:
		return parse_end(line, action, why);
	case ACTION_DELETE:
		return parse_delete(line, action, why);
	case ACTION_CLONE:
		return action_parse_clone(line, action, why);
	case ACTION_FLATTEN:
		return parse_flatten(line, action, why);
	case ACTION_NONE:
	case ACTION_KINDS:
		break;
	}
	return -EINVAL;
}

int action_parse(enum action_kind kind, const char *text, size_t len, struct action *ret, struct reason *why)
{
	*ret = (struct action){.kind = kind, .owner = -1, .group = -1};
	while (len && (is_blank(*text) || *text == '\n')) {
		text++;
		len--;
	}
	if (!len || *text == '#') {
		ret->kind = ACTION_NONE;
		return 0;
	}
	if (len > ACTION_TEXT_MAX)
		return reason_set(why, -EFBIG, "a command may have %u KiB at most", ACTION_TEXT_MAX >> 10);
	if (*text != '<' && memchr(text, '\0', len))
		return reason_set(why, -EINVAL, "the line isn't text");
	auto_free char *line = strndup(text, len);
	int err = !line ? -ENOMEM : *text == '<' ? action_parse_xml(text, len, ret, why) : parse_line(line, ret, why);
	if (err)
		action_done(ret);
	return err;
}

static void clone_disk_done(struct action_clone_disk *row)
{
	free(row->disk);
	free(row->image);
	free(row->pool);
	free(row->volume);
	free(row->target);
	free(row->bus);
}

void action_done(struct action *action)
{
	clone_disk_done(&action->all);
	for (size_t i = 0; i < action->nr_rows; i++)
		clone_disk_done(&action->rows[i]);
	free(action->rows);
	free(action->domain);
	free(action->volume_disk);
	free(action->backing);
	for (size_t i = 0; i < action->nr_disks; i++)
		free(action->disks[i]);
	for (size_t i = 0; i < action->nr_left_out; i++)
		free(action->left_out[i]);
	for (size_t i = 0; i < action->nr_changes; i++) {
		free(action->changes[i].disk);
		free(action->changes[i].snapshot);
		free(action->changes[i].image);
	}
	free(action->disks);
	free(action->left_out);
	free(action->changes);
	free(action->name);
	free(action->description);
	free(action->memory_path);
	free(action->snapshot);
	free(action->config);
	free(action->memory);
	*action = (struct action){0};
}
