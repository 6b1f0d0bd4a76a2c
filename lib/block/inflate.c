#include "block/inflate.h"

#include <endian.h>
#include <string.h>

/* A table's entry: bits 0-7 the length of the code, 8-12 how many extra bits follow it, 13-15 one of the flags, 16-31 the literal, the length or
 * distance to which the extra bits are added, or where the second level begins. */
#define LITERAL 0x8000u
#define SPECIAL 0x4000u /* the block's end, or with extra bits set no symbol at all */
#define SECOND	0x2000u /* a second level; its number of bits is where the extra bits are */
#define INVALID (SPECIAL | 0x100u)

#define MAX_CODE_LEN 15u
#define NR_LIT	     288u
#define NR_DIST	     32u
#define MAX_MATCH    258u
#define FAST_IN	     24u /* bytes of input that a turn of the fast loop may look at */
#define FAST_OUT     (MAX_MATCH + 16u + 4u) /* bytes of output that it may write */

struct stream {
	const uint8_t *in, *in_end;
	uint8_t *out, *out_start, *out_end;
	uint64_t bits; /* the next ones, lowest first; above NR_BITS lies nothing but what comes there anyway */
	unsigned nr_bits;
};

static unsigned entry_len(uint32_t e)
{
	return e & 0xff;
}
static unsigned entry_extra(uint32_t e)
{
	return e >> 8 & 31;
}
static uint32_t entry_value(uint32_t e)
{
	return e >> 16;
}

static const uint16_t length_base[29] = {3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258};
static const uint8_t length_extra[29] = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0};

static uint32_t lit_entry(unsigned symbol)
{
	if (symbol < 256)
		return symbol << 16 | LITERAL;
	if (symbol == 256)
		return SPECIAL;
	if (symbol > 285)
		return INVALID;
	return (uint32_t)length_base[symbol - 257] << 16 | (uint32_t)length_extra[symbol - 257] << 8;
}

/* 1, 2, 3, 4, then two for each number of extra bits. */
static uint32_t dist_entry(unsigned symbol)
{
	if (symbol > 29)
		return INVALID;
	unsigned extra = symbol < 4 ? 0 : symbol / 2 - 1;
	uint32_t base = symbol < 4 ? symbol + 1 : ((2 + (symbol & 1)) << extra) + 1;
	return base << 16 | extra << 8;
}

static uint32_t plain_entry(unsigned symbol)
{
	return symbol << 16;
}

/* --- tables ------------------------------------------------------------------------------------------------------- */

static unsigned reverse(unsigned code, unsigned len)
{
	unsigned out = 0;
	for (; len; len--, code >>= 1)
		out = out << 1 | (code & 1);
	return out;
}

/* Counts the lengths; false for a code with too many words, or with too few unless it is that of a single symbol. */
static bool count_lens(const uint8_t *lens, unsigned nr, unsigned counts[MAX_CODE_LEN + 1], unsigned *ret_max)
{
	unsigned max = 0;
	int left = 1;
	memset(counts, 0, (MAX_CODE_LEN + 1) * sizeof *counts);
	for (unsigned i = 0; i < nr; i++)
		counts[lens[i]]++;
	counts[0] = 0;
	for (unsigned len = 1; len <= MAX_CODE_LEN; len++) {
		left = left * 2 - (int)counts[len];
		if (left < 0)
			return false;
		if (counts[len])
			max = len;
	}
	*ret_max = max;
	return !left || max <= 1;
}

/* A canonical code of NR symbols: at most 288. TABLE_BITS are looked up at once, the others of a longer code in a second level. */
static bool build(uint32_t *table, unsigned table_bits, const uint8_t *lens, unsigned nr, uint32_t (*entry_of)(unsigned))
{
	unsigned counts[MAX_CODE_LEN + 1], max, code = 0, next[MAX_CODE_LEN + 1];
	if (!count_lens(lens, nr, counts, &max))
		return false;
	if (max <= 1)
		for (unsigned i = 0; i < 1u << table_bits; i++)
			table[i] = INVALID;
	unsigned nr_sorted[MAX_CODE_LEN + 2] = {0};
	for (unsigned len = 1; len <= MAX_CODE_LEN; len++) {
		code = (code + counts[len - 1]) << 1;
		next[len] = code;
		nr_sorted[len + 1] = nr_sorted[len] + counts[len];
	}
	uint16_t sorted[NR_LIT];
	for (unsigned i = 0; i < nr; i++)
		if (lens[i])
			sorted[nr_sorted[lens[i]]++] = (uint16_t)i;
	unsigned total = nr_sorted[max], second = 0, second_bits = max > table_bits ? max - table_bits : 0;
	uint32_t used = 1u << table_bits, prefix_now = UINT32_MAX;
	for (unsigned i = 0; i < total; i++) {
		unsigned len = lens[sorted[i]], word = reverse(next[len]++, len);
		uint32_t e = entry_of(sorted[i]) | len;
		if (len <= table_bits) {
			for (unsigned at = word; at < 1u << table_bits; at += 1u << len)
				table[at] = e;
			continue;
		}
		uint32_t prefix = word & ((1u << table_bits) - 1);
		if (prefix != prefix_now) {
			prefix_now = prefix;
			second = used;
			used += 1u << second_bits;
			table[prefix] = second << 16 | SECOND | second_bits << 8 | table_bits;
		}
		for (unsigned at = word >> table_bits; at < 1u << second_bits; at += 1u << (len - table_bits))
			table[second + at] = e;
	}
	return true;
}

/* --- bits, carefully ------------------------------------------------------------------------------------------------ */

static bool need(struct stream *s, unsigned nr)
{
	while (s->nr_bits < nr) {
		if (s->in == s->in_end)
			return false;
		s->bits |= (uint64_t)*s->in++ << s->nr_bits;
		s->nr_bits += 8;
	}
	return true;
}

static uint32_t take(struct stream *s, unsigned nr)
{
	uint32_t value = (uint32_t)(s->bits & ((1ull << nr) - 1));
	s->bits >>= nr;
	s->nr_bits -= nr;
	return value;
}

/* The next symbol; near the input's end there may be fewer bits than the longest code has. */
static bool take_symbol(struct stream *s, const uint32_t *table, unsigned table_bits, uint32_t *ret)
{
	need(s, MAX_CODE_LEN);
	uint64_t known = s->bits & ((1ull << s->nr_bits) - 1);
	uint32_t e = table[known & ((1u << table_bits) - 1)];
	if (e & SECOND)
		e = table[entry_value(e) + (known >> table_bits & ((1u << entry_extra(e)) - 1))];
	if ((e & INVALID) == INVALID || entry_len(e) > s->nr_bits)
		return false;
	take(s, entry_len(e));
	*ret = e;
	return true;
}

static bool take_value(struct stream *s, uint32_t e, uint32_t *ret)
{
	if (!need(s, entry_extra(e)))
		return false;
	*ret = entry_value(e) + take(s, entry_extra(e));
	return true;
}

/* --- blocks ------------------------------------------------------------------------------------------------------------ */

enum step { STEP_GO_ON, STEP_BLOCK_ENDS, STEP_FULL, STEP_FAILED };

/* One symbol, wherever the ends are. */
static enum step decode_one(struct stream *s, const struct inflate_tables *t)
{
	uint32_t e = 0, len = 0, dist = 0;
	if (s->out == s->out_end)
		return STEP_FULL;
	if (!take_symbol(s, t->lit, INFLATE_LIT_BITS, &e))
		return STEP_FAILED;
	if (e & LITERAL) {
		*s->out++ = (uint8_t)entry_value(e);
		return STEP_GO_ON;
	}
	if (e & SPECIAL)
		return STEP_BLOCK_ENDS;
	if (!take_value(s, e, &len) || !take_symbol(s, t->dist, INFLATE_DIST_BITS, &e) || !take_value(s, e, &dist) ||
	    dist > (size_t)(s->out - s->out_start))
		return STEP_FAILED;
	for (; len && s->out < s->out_end; len--, s->out++)
		*s->out = *(s->out - dist);
	return STEP_GO_ON;
}

/* May write up to 15 bytes more than LEN. */
static inline uint8_t *copy_match(uint8_t *out, uint32_t dist, uint32_t len)
{
	const uint8_t *from = out - dist;
	uint8_t *end = out + len;
	if (dist >= 16) {
		do {
			memcpy(out, from, 16);
			out += 16;
			from += 16;
		} while (out < end);
	} else if (dist >= 8) {
		do {
			memcpy(out, from, 8);
			out += 8;
			from += 8;
		} while (out < end);
	} else if (dist == 1) {
		memset(out, *from, len);
	} else {
		do
			*out++ = *from++;
		while (out < end);
	}
	return end;
}

/* As long as neither end is near: 56 bits or more are at hand after each refill, and nothing needs more than 48. */
static enum step decode_fast(struct stream *stream, const struct inflate_tables *t)
{
	struct stream s = *stream;
	const uint8_t *in_stop = s.in_end - FAST_IN;
	const uint8_t *out_stop = s.out_end - FAST_OUT;
	enum step step = STEP_GO_ON;
#define REFILL() \
	do { \
		uint64_t word_; \
		memcpy(&word_, s.in, sizeof word_); \
		s.bits |= le64toh(word_) << s.nr_bits; \
		s.in += (63 - s.nr_bits) >> 3; \
		s.nr_bits |= 56; \
	} while (0)
#define DROP(n) (s.bits >>= (n), s.nr_bits -= (n))
#define FIRST(table, table_bits) (table)[s.bits & ((1u << (table_bits)) - 1)]
#define THEN(table, table_bits, e) (table)[entry_value(e) + (s.bits >> (table_bits) & ((1u << entry_extra(e)) - 1))]
	while (s.in <= in_stop && s.out <= out_stop) {
		REFILL();
		uint32_t e = FIRST(t->lit, INFLATE_LIT_BITS);
		for (unsigned i = 0; i < 2 && e & LITERAL; i++) {
			DROP(entry_len(e));
			*s.out++ = (uint8_t)entry_value(e);
			e = FIRST(t->lit, INFLATE_LIT_BITS);
		}
		if (e & SECOND)
			e = THEN(t->lit, INFLATE_LIT_BITS, e);
		if (e & LITERAL) {
			DROP(entry_len(e));
			*s.out++ = (uint8_t)entry_value(e);
			continue;
		}
		if (e & SPECIAL) {
			step = (e & INVALID) == INVALID ? STEP_FAILED : STEP_BLOCK_ENDS;
			DROP(entry_len(e));
			break;
		}
		DROP(entry_len(e));
		uint32_t len = entry_value(e) + (uint32_t)(s.bits & ((1u << entry_extra(e)) - 1));
		DROP(entry_extra(e));
		REFILL();
		e = FIRST(t->dist, INFLATE_DIST_BITS);
		if (e & SECOND)
			e = THEN(t->dist, INFLATE_DIST_BITS, e);
		DROP(entry_len(e));
		uint32_t dist = entry_value(e) + (uint32_t)(s.bits & ((1u << entry_extra(e)) - 1));
		DROP(entry_extra(e));
		if (e & SPECIAL || dist > (size_t)(s.out - s.out_start)) {
			step = STEP_FAILED;
			break;
		}
		s.out = copy_match(s.out, dist, len);
	}
#undef REFILL
#undef DROP
#undef FIRST
#undef THEN
	*stream = s;
	return step;
}

static enum step decode_block(struct stream *s, const struct inflate_tables *t)
{
	enum step step = STEP_GO_ON;
	while (step == STEP_GO_ON) {
		if ((size_t)(s->in_end - s->in) >= FAST_IN && (size_t)(s->out_end - s->out) >= FAST_OUT)
			step = decode_fast(s, t);
		if (step == STEP_GO_ON)
			step = decode_one(s, t);
	}
	return step;
}

static bool copy_stored(struct stream *s)
{
	take(s, s->nr_bits & 7);
	s->in -= s->nr_bits >> 3;
	s->bits = s->nr_bits = 0;
	if (s->in_end - s->in < 4)
		return false;
	size_t len = s->in[0] | (size_t)s->in[1] << 8, check = s->in[2] | (size_t)s->in[3] << 8;
	s->in += 4;
	size_t left = (size_t)(s->out_end - s->out);
	if (check != (len ^ 0xffff))
		return false;
	len = len < left ? len : left;
	if (len > (size_t)(s->in_end - s->in))
		return false;
	memcpy(s->out, s->in, len);
	s->in += len;
	s->out += len;
	return true;
}

static bool fixed_tables(struct inflate_tables *t)
{
	memset(t->lens, 8, 144);
	memset(t->lens + 144, 9, 112);
	memset(t->lens + 256, 7, 24);
	memset(t->lens + 280, 8, 8);
	memset(t->lens + NR_LIT, 5, NR_DIST);
	return build(t->lit, INFLATE_LIT_BITS, t->lens, NR_LIT, lit_entry) &&
	       build(t->dist, INFLATE_DIST_BITS, t->lens + NR_LIT, NR_DIST, dist_entry);
}

/* The NR code lengths of a dynamic block, themselves encoded by TABLE. */
static bool take_lens(struct stream *s, const uint32_t *table, uint8_t *lens, unsigned nr)
{
	for (unsigned i = 0; i < nr;) {
		uint32_t e = 0;
		if (!take_symbol(s, table, 7, &e))
			return false;
		unsigned symbol = entry_value(e), run = 1;
		uint8_t len = (uint8_t)symbol;
		if (symbol >= 16) {
			if (!need(s, 7) && !need(s, symbol == 16 ? 2 : symbol == 17 ? 3 : 7))
				return false;
			run = symbol == 16 ? 3 + take(s, 2) : symbol == 17 ? 3 + take(s, 3) : 11 + take(s, 7);
			if ((symbol == 16 && !i) || run > nr - i)
				return false;
			len = symbol == 16 ? lens[i - 1] : 0;
		}
		memset(lens + i, len, run);
		i += run;
	}
	return true;
}

static bool dynamic_tables(struct stream *s, struct inflate_tables *t)
{
	static const uint8_t order[19] = {16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15};
	uint8_t lens[19] = {0};
	if (!need(s, 14))
		return false;
	unsigned nr_lit = 257 + take(s, 5), nr_dist = 1 + take(s, 5), nr_code = 4 + take(s, 4);
	if (nr_lit > 286 || nr_dist > 30)
		return false;
	for (unsigned i = 0; i < nr_code; i++) {
		if (!need(s, 3))
			return false;
		lens[order[i]] = (uint8_t)take(s, 3);
	}
	/* Its table is where that of the literals will be. */
	if (!build(t->lit, 7, lens, 19, plain_entry) || !take_lens(s, t->lit, t->lens, nr_lit + nr_dist) || !t->lens[256])
		return false;
	return build(t->lit, INFLATE_LIT_BITS, t->lens, nr_lit, lit_entry) &&
	       build(t->dist, INFLATE_DIST_BITS, t->lens + nr_lit, nr_dist, dist_entry);
}

bool inflate_whole(struct inflate_tables *tables, const void *in, size_t in_len, void *out, size_t out_len)
{
	struct stream s = {.in = in, .in_end = (const uint8_t *)in + in_len, .out = out, .out_start = out, .out_end = (uint8_t *)out + out_len};
	bool last = false;
	while (!last && s.out < s.out_end) {
		if (!need(&s, 3))
			return false;
		last = take(&s, 1);
		unsigned type = take(&s, 2);
		if (type == 0) {
			if (!copy_stored(&s))
				return false;
			continue;
		}
		if (type == 3 || !(type == 1 ? fixed_tables(tables) : dynamic_tables(&s, tables)))
			return false;
		if (decode_block(&s, tables) == STEP_FAILED)
			return false;
	}
	return s.out == s.out_end;
}
