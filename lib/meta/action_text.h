/* What the two halves of the parser of actions share. For lib/meta only. */
#ifndef META_ACTION_TEXT_H
#define META_ACTION_TEXT_H

#include "meta/action.h"

/* An XML document for action->kind. */
int action_parse_xml(const char *text, size_t len, struct action *action, struct reason *why);

/* Appends a copy of TEXT to a list in an action. */
int action_add_text(char ***list, size_t *nr, const char *text);

/* Appends an empty row; NULL: out of memory. */
struct action_disk *action_add_change(struct action *action);

/* Copies TEXT (NULL stays NULL) to *RET, freeing what was there. */
int action_set(char **ret, const char *text);

#endif
