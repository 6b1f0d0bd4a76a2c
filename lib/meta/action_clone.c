/* What is written into actions/clone: words, and what may stand behind them. */
#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/mem.h"
#include "meta/action_text.h"

static const char expected[] = "SNAPSHOT [NAME] [KEY=VALUE...] [DISK.KEY=VALUE...] [DISK=none...]";

/* --- values -------------------------------------------------------------------------------------------------------------- */

/* 0: no such unit. */
static uint64_t unit_bytes(const char *unit, size_t len)
{
	static const char letters[] = "KMGTPE";
	if (!len || (len == 1 && strchr("bB", *unit)) || (len == 4 && !strncasecmp(unit, "byte", 4)) || (len == 5 && !strncasecmp(unit, "bytes", 5)))
		return 1;
	const char *letter = strchr(letters, toupper((unsigned char)*unit));
	bool is_1024 = len == 1 || (len == 3 && !strncasecmp(unit + 1, "iB", 2));
	bool is_1000 = len == 2 && toupper((unsigned char)unit[1]) == 'B';
	if (!letter || (!is_1024 && !is_1000))
		return 0;
	uint64_t bytes = 1;
	for (const char *l = letters; l <= letter; l++)
		bytes *= is_1024 ? 1024 : 1000;
	return bytes;
}

int action_parse_size(const char *text, const char *unit, uint64_t *ret)
{
	if (!isdigit((unsigned char)*text))
		return -EINVAL;
	char *end = NULL;
	errno = 0;
	uint64_t number = strtoull(text, &end, 10), bytes;
	if (errno)
		return -ERANGE;
	while (isspace((unsigned char)*end))
		end++;
	uint64_t scale = *end || !unit ? unit_bytes(end, strlen(end)) : unit_bytes(unit, strlen(unit));
	if (!scale || (*end && unit))
		return -EINVAL;
	if (__builtin_mul_overflow(number, scale, &bytes) || bytes > INT64_MAX)
		return -ERANGE;
	*ret = bytes;
	return 0;
}

/* What a value may be, in words. */
static int set_word(int *field, const char *const words[2], const char *value)
{
	for (int i = 0; i < 2; i++)
		if (!strcmp(words[i], value)) {
			*field = i + 1;
			return 0;
		}
	return -EINVAL;
}

static int set_mode_bits(unsigned *field, const char *value)
{
	char *end = NULL;
	unsigned long bits = strtoul(value, &end, 8);
	if (!isdigit((unsigned char)*value) || *end || !bits || bits > 0777)
		return -EINVAL;
	*field = (unsigned)bits;
	return 0;
}

/* --- keys ---------------------------------------------------------------------------------------------------------------- */

static const struct key {
	const char *name;
	enum { KEY_WORD, KEY_TEXT, KEY_NAME, KEY_SIZE, KEY_BITS } kind; /* KEY_TEXT may be empty */
	size_t off;
	const char *words[2]; /* KEY_WORD: in the order of their enum, from 1 on */
	const char *expected;
} keys[] = {
	{"mode", KEY_WORD, offsetof(struct action_clone_disk, mode), {"thin", "full"}, "thin or full"},
	{"format", KEY_WORD, offsetof(struct action_clone_disk, format), {"raw", "qcow2"}, "raw or qcow2"},
	{"allocation", KEY_WORD, offsetof(struct action_clone_disk, allocation), {"sparse", "full"}, "sparse or full"},
	{"shrink", KEY_WORD, offsetof(struct action_clone_disk, shrink), {"yes", "no"}, "yes or no"},
	{"serial", KEY_WORD, offsetof(struct action_clone_disk, serial), {"keep", "renew"}, "keep or renew"},
	{"pool", KEY_TEXT, offsetof(struct action_clone_disk, pool), {NULL}, "a pool's name"},
	{"volume", KEY_NAME, offsetof(struct action_clone_disk, volume), {NULL}, "a file's name"},
	{"target", KEY_NAME, offsetof(struct action_clone_disk, target), {NULL}, "a name like vda"},
	{"bus", KEY_NAME, offsetof(struct action_clone_disk, bus), {NULL}, "virtio, scsi, sata or another bus"},
	{"capacity", KEY_SIZE, offsetof(struct action_clone_disk, capacity), {NULL}, "bytes, or a number with K, M, G or T"},
	{"permissions", KEY_BITS, offsetof(struct action_clone_disk, mode_bits), {NULL}, "an octal number like 0640"},
};

static const struct key *key_by_name(const char *name)
{
	for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
		if (!strcmp(keys[i].name, name))
			return &keys[i];
	return NULL;
}

static bool is_said(const struct key *key, const void *field)
{
	switch (key->kind) {
	case KEY_WORD:
		return *(const int *)field;
	case KEY_TEXT:
	case KEY_NAME:
		return *(char *const *)field;
	case KEY_SIZE:
		return *(const uint64_t *)field;
	case KEY_BITS:
		return *(const unsigned *)field;
	}
	return false;
}

static int set_value(const struct key *key, void *field, const char *value)
{
	switch (key->kind) {
	case KEY_WORD:
		return set_word(field, key->words, value);
	case KEY_NAME:
		if (!*value)
			return -EINVAL;
		break;
	case KEY_TEXT:
		break;
	case KEY_SIZE:
		return action_parse_size(value, NULL, field) || !*(uint64_t *)field ? -EINVAL : 0;
	case KEY_BITS:
		return set_mode_bits(field, value);
	}
	return action_set(field, value);
}

static int set_key(const struct key *key, struct action_clone_disk *row, const char *value, const char *word, struct reason *why)
{
	void *field = (char *)row + key->off;
	if (is_said(key, field))
		return reason_set(why, -EINVAL, "%s: %s is said twice", word, key->name);
	int err = set_value(key, field, value);
	return err == -EINVAL ? reason_set(why, err, "%s: expected %s", word, key->expected) : err;
}

/* --- rows ---------------------------------------------------------------------------------------------------------------- */

struct action_clone_disk *action_add_row(struct action *action)
{
	struct action_clone_disk *grown = reallocarray(action->rows, action->nr_rows + 1, sizeof *grown);
	if (!grown)
		return NULL;
	action->rows = grown;
	grown[action->nr_rows] = (struct action_clone_disk){0};
	return &grown[action->nr_rows++];
}

/* The row of DISK, made where there is none; NULL: out of memory. */
static struct action_clone_disk *row_of(struct action *action, const char *disk)
{
	for (size_t i = 0; i < action->nr_rows; i++)
		if (!strcmp(action->rows[i].disk, disk))
			return &action->rows[i];
	struct action_clone_disk *row = action_add_row(action);
	return row && !action_set(&row->disk, disk) ? row : NULL;
}

/* DISK.KEY=VALUE, or DISK=none. */
static int parse_disk_pair(struct action *action, char *name, const char *value, const char *word, struct reason *why)
{
	char *dot = strrchr(name, '.');
	const struct key *key = dot ? key_by_name(dot + 1) : NULL;
	bool is_none = !strcmp(value, "none");
	if (!(key && dot > name) && !is_none)
		return reason_set(why, -EINVAL, "%s: expected %s", word, expected);
	if (key && dot > name)
		*dot = '\0'; /* what is left names the disk */
	struct action_clone_disk *row = row_of(action, name);
	if (!row)
		return -ENOMEM;
	if (key && dot > name)
		return set_key(key, row, value, word, why);
	row->left_out = true;
	return 0;
}

static int parse_pair(struct action *action, const struct action_word *word, struct reason *why)
{
	auto_free char *name = strndup(word->text, word->key_len);
	const char *value = word->text + word->key_len + 1;
	if (!name)
		return -ENOMEM;
	const struct key *key = key_by_name(name);
	return key ? set_key(key, &action->all, value, word->text, why) : parse_disk_pair(action, name, value, word->text, why);
}

static int parse_word(struct action *action, struct action_word *word, struct reason *why)
{
	if (word->key_len)
		return parse_pair(action, word, why);
	char **field = !action->snapshot ? &action->snapshot : !action->name ? &action->name : NULL;
	if (!field || !*word->text)
		return reason_set(why, -EINVAL, "'%s': expected %s", word->text, expected);
	*field = take_ptr(word->text);
	return 0;
}

int action_parse_clone(const char *pos, struct action *action, struct reason *why)
{
	for (;;) {
		struct action_word word;
		action_skip_blanks(&pos);
		if (*pos == '<')
			return action_parse_xml(pos, strlen(pos), action, why);
		int err = action_next_word(&pos, &word, why);
		if (!err && !word.text && !action->snapshot)
			err = reason_set(why, -EINVAL, "which snapshot? Expected %s", expected);
		if (err || !word.text)
			return err;
		err = parse_word(action, &word, why);
		free(word.text);
		if (err)
			return err;
	}
}
