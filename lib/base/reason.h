/* Why an operation failed, in words.
 *
 * Library functions return a negative errno; those whose failure a person will want explained take a
 * `struct reason *` as well (NULL: not wanted) and say there what was wrong with which file and what to do.
 * The library never prints: the program turns a reason into an events line, once. */
#ifndef BASE_REASON_H
#define BASE_REASON_H

struct reason {
	char text[600];
};

/* Formats the reason and returns ERR, so that `return reason_set(why, -EUCLEAN, "…")` is one statement. */
int reason_set(struct reason *why, int err, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* Puts words in front of what the reason says already ("disk vda: " + …); returns ERR. */
int reason_prefix(struct reason *why, int err, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

#endif
