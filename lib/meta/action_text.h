/* What the parts of the parser of actions share. For lib/meta only. */
#ifndef META_ACTION_TEXT_H
#define META_ACTION_TEXT_H

#include "meta/action.h"
#include "meta/xml.h"

struct action_word {
	char *text; /* without quotes and backslashes */
	size_t key_len; /* of what stands before the first '=' outside quotes; 0: there is none, or nothing before it */
};

void action_skip_blanks(const char **pos);

/* The word at *POS, which the caller frees; its text is NULL at the end of the line. */
int action_next_word(const char **pos, struct action_word *ret, struct reason *why);

/* An XML document for action->kind. */
int action_parse_xml(const char *text, size_t len, struct action *action, struct reason *why);

/* action_clone.c: a line, or the words and the document behind them. */
int action_parse_clone(const char *pos, struct action *action, struct reason *why);

/* action_clone_xml.c: TEXT is the document of ROOT. */
int action_parse_clone_xml(xmlNodePtr root, const char *text, size_t len, struct action *action, struct reason *why);

/* A number of bytes, with UNIT or a unit behind it ("K", "KiB": 1024; "KB": 1000; "bytes"; up to E), of which CASE doesn't matter. -EINVAL, -ERANGE. */
int action_parse_size(const char *text, const char *unit, uint64_t *ret);

/* Appends an empty row; NULL: out of memory. */
struct action_clone_disk *action_add_row(struct action *action);

/* Appends a copy of TEXT to a list in an action. */
int action_add_text(char ***list, size_t *nr, const char *text);

/* Appends an empty row; NULL: out of memory. */
struct action_disk *action_add_change(struct action *action);

/* Copies TEXT (NULL stays NULL) to *RET, freeing what was there. */
int action_set(char **ret, const char *text);

#endif
