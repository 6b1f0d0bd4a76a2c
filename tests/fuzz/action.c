/* limit: 300 nightly: 1800
 * What is written into the files of actions/: byte 0 says into which, and in how many pieces; the rest is the text. A command is the same in
 * whatever pieces it comes, and is taken or refused with a reason; what reading the file gives sets nothing off. */
#include <errno.h>
#include <stdlib.h>

#include "common/texts.h"
#include "common/words.h"
#include "meta/action.h"

/* A command that is complete stays what it is when more is written. */
static void check_pieces(enum action_kind kind, const char *text, size_t len, size_t piece)
{
	size_t off = 0, cmd_len = 0, whole_off = 0, whole_len = 0;
	bool whole = action_next(kind, text, len, false, &whole_off, &whole_len);
	bool found = false;
	for (size_t n = piece; n < len && !found; n += piece) {
		char *part = fuzz_text((const uint8_t *)text, n);
		found = action_next(kind, part, n, false, &off, &cmd_len);
		free(part);
	}
	if (found && (!whole || off != whole_off || cmd_len != whole_len))
		fuzz_fail("a command of %zu bytes at %zu is one of %zu at %zu when more follows", cmd_len, off, whole_len, whole_off);
}

static void check_action(enum action_kind kind, const struct action *a)
{
	FUZZ_CHECK(a->kind == kind || a->kind == ACTION_NONE);
	FUZZ_CHECK(!a->memory_path || a->memory_path[0] == '/');
	for (size_t i = 0; i < a->nr_disks; i++)
		FUZZ_CHECK(a->disks[i]);
	for (size_t i = 0; i < a->nr_left_out; i++)
		FUZZ_CHECK(a->left_out[i]);
	for (size_t i = 0; i < a->nr_changes; i++)
		FUZZ_CHECK(a->changes[i].disk || a->changes[i].image);
	for (size_t i = 0; i < a->nr_rows; i++)
		FUZZ_CHECK(a->rows[i].disk || a->rows[i].image);
}

static void parse(enum action_kind kind, const char *text, size_t len)
{
	struct action action;
	struct reason why = {""};
	char *own = fuzz_text((const uint8_t *)text, len); /* not a byte more */
	int err = action_parse(kind, own, len, &action, &why);
	if (err) {
		FUZZ_CHECK((err == -EINVAL || err == -EOPNOTSUPP || err == -ENAMETOOLONG || err == -EFBIG || err == -ERANGE) && why.text[0]);
	} else {
		check_action(kind, &action);
		action_done(&action);
	}
	free(own);
}

static void write_all(enum action_kind kind, const char *text, size_t len, size_t piece)
{
	size_t off = 0, cmd_len = 0;
	for (unsigned i = 0; i < 8 && action_next(kind, text, len, true, &off, &cmd_len); i++) {
		FUZZ_CHECK(cmd_len > 0 && off <= len && cmd_len <= len - off);
		check_pieces(kind, text, len, piece);
		parse(kind, text + off, cmd_len);
		text += off + cmd_len;
		len -= off + cmd_len;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static bool ready;
	if (!size)
		return 0;
	unsigned first = *data;
	char *text = fuzz_text(data + 1, size - 1);
	fuzz_begin(WORDS_MEMORY_MAX, 0, 0);
	for (int kind = ACTION_NONE + 1; !ready && kind < ACTION_KINDS; kind++) {
		const char *usage = action_usage((enum action_kind)kind);
		struct action action;
		FUZZ_CHECK(action_kind_by_name(action_name((enum action_kind)kind)) == (enum action_kind)kind);
		FUZZ_CHECK(action_parse((enum action_kind)kind, usage, strcspn(usage, "\n"), &action, NULL) == 0 && action.kind == ACTION_NONE);
		action_done(&action);
	}
	ready = true;
	write_all((enum action_kind)(ACTION_NONE + 1 + first % (ACTION_KINDS - 1)), text, size - 1, 1 + first / 16);
	fuzz_end();
	free(text);
	return 0;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed)
{
	return texts_mutate(data, 1, size, max_size, seed);
}
