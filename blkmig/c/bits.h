/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The loops of a Bitmap, over its words and its summary (the class tells what the summary is, and why it is right).
 *
 * Other threads may change words at any time.  What is read is read a word at a time, relaxed, or as a vector of words
 * that are looked at again one by one, so a result was true at some moment of the call.  What is written is written in
 * one atomic step per word, with blkmig_set_word() of _core.pxd or take_word() - or by memset() where all bits of a word
 * get the same value: whatever the order of its stores, each bit is then set, or cleared, at one moment, and no other
 * bit is touched.
 * Ranges are [start, stop) and not empty.
 */
#ifndef BLKMIG_BITS_H
#define BLKMIG_BITS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "zero.h"

enum {
    BITS_PER_WORD = 8 * sizeof(unsigned long),
    WORD_INDEX_SHIFT = BITS_PER_WORD == 64 ? 6 : 5,
    GROUP_INDEX_SHIFT = 9,
    GROUP_SIZE = 1 << GROUP_INDEX_SHIFT,
};

struct bits {
    unsigned long *words;
    uint8_t *summary;
    uint8_t *sweeping;
    size_t nwords;
    int summed;                         /* the summary holds: groups that it calls empty may be passed over */
};

static inline unsigned long word_at(const struct bits *bits, size_t index)
{
    return __atomic_load_n(bits->words + index, __ATOMIC_RELAXED);
}

static inline unsigned long mask_from(size_t bit)
{
    return ~0UL << (bit % BITS_PER_WORD);
}

static inline unsigned long mask_to(size_t bit)
{
    return ~0UL >> (-bit % BITS_PER_WORD);
}

static inline size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* ---- the summary ---- */

static inline int group_is_passed(const struct bits *bits, size_t group)
{
    return bits->summed && __atomic_load_n(bits->summary + group, __ATOMIC_SEQ_CST) == 0;
}

static inline size_t group_end(size_t index, size_t nwords)
{
    return least(nwords, ((index >> GROUP_INDEX_SHIFT) + 1) << GROUP_INDEX_SHIFT);
}

static int group_is_zero(const struct bits *bits, size_t group)
{
    size_t first = group << GROUP_INDEX_SHIFT;

    return zero_run(zero_chosen, bits->words + first, (group_end(first, bits->nwords) - first) * sizeof *bits->words);
}

/* Index of the first byte in [from, to) that is not 0, or `to`. Readable up to a multiple of 8. */
static size_t summary_next(const uint8_t *summary, size_t from, size_t to)
{
    while (from < to) {
        if (from % 8 == 0 && __atomic_load_n((const uint64_t *)(summary + from), __ATOMIC_SEQ_CST) == 0) {
            from += 8;
            continue;
        }
        if (__atomic_load_n(summary + from, __ATOMIC_SEQ_CST) != 0)
            return from;
        from++;
    }
    return to;
}

static int summary_change(uint8_t *byte, uint8_t from, uint8_t to)
{
    return __atomic_compare_exchange_n(byte, &from, to, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}

/* The group looked empty: lower its byte if it still is. */
static void sweep(const struct bits *bits, size_t group)
{
    uint8_t *byte = bits->summary + group;

    if (__atomic_exchange_n(bits->sweeping, 1, __ATOMIC_SEQ_CST))
        return;                         /* one thread at a time; a byte too many costs a look, no more */
    if (summary_change(byte, 1, 2)) {
        __atomic_thread_fence(__ATOMIC_SEQ_CST);        /* the second look's plain loads come after the 2 */
        summary_change(byte, 2, !group_is_zero(bits, group));
    }
    __atomic_store_n(bits->sweeping, 0, __ATOMIC_SEQ_CST);
}

/* Make the summary true again after anybody wrote the words past it. */
static void bits_summarise(const struct bits *bits)
{
    size_t group, ngroups = (bits->nwords + GROUP_SIZE - 1) >> GROUP_INDEX_SHIFT;

    for (group = 0; group < ngroups; group++)
        if (!group_is_zero(bits, group))
            __atomic_store_n(bits->summary + group, 1, __ATOMIC_SEQ_CST);
}

/* ---- searches: the bit, or -1 ---- */

/* Eight words at a time, and the place among the eight without a branch: no predictor knows where dirty bits are.
 * Written out: gcc 12 keeps loops here as such, at a third of the speed. */
static size_t next_word_portable(const unsigned long *words, size_t from, size_t to, unsigned long flip)
{
#define LOOK(i) (__atomic_load_n(words + from + (i), __ATOMIC_RELAXED) ^ flip)
#define PLACE(i) ((unsigned int)(LOOK(i) != 0) << (i))
    unsigned int found;

    for (; from + 8 <= to; from += 8) {
        if (!(LOOK(0) | LOOK(1) | LOOK(2) | LOOK(3) | LOOK(4) | LOOK(5) | LOOK(6) | LOOK(7)))
            continue;
        found = PLACE(0) | PLACE(1) | PLACE(2) | PLACE(3) | PLACE(4) | PLACE(5) | PLACE(6) | PLACE(7);
        if (found)                      /* else they were taken between the two looks */
            return from + __builtin_ctz(found);
    }
    while (from < to && !LOOK(0))
        from++;
    return from;
#undef PLACE
#undef LOOK
}

#if defined(__x86_64__)
__attribute__((target("avx512f")))
static size_t next_word_avx512(const unsigned long *words, size_t from, size_t to, unsigned long flip)
{
    const __m512i same = _mm512_set1_epi64((long long)flip);
    __mmask8 found, rest;

    for (; from + 8 <= to; from += 8) {
        found = _mm512_cmpneq_epi64_mask(_mm512_loadu_si512(words + from), same);
        if (found)
            return from + __builtin_ctz(found);
    }
    rest = (__mmask8)((1u << (to - from)) - 1);
    found = _mm512_mask_cmpneq_epi64_mask(rest, _mm512_maskz_loadu_epi64(rest, words + from), same);
    return found ? from + __builtin_ctz(found) : to;
}
#endif

/* Index of the first word in [from, to) that is not `flip`, or `to`: 0 looks for set, ~0 for clear bits. */
static inline size_t next_word(const struct bits *bits, size_t from, size_t to, unsigned long flip)
{
#if defined(__x86_64__)
    if (zero_uses_avx512())
        return next_word_avx512(bits->words, from, to, flip);
#endif
    return next_word_portable(bits->words, from, to, flip);
}

static ssize_t bits_find_set(const struct bits *bits, size_t start, size_t stop)
{
    size_t index = start >> WORD_INDEX_SHIFT, end = ((stop - 1) >> WORD_INDEX_SHIFT) + 1, group, until;
    unsigned long word = word_at(bits, index) & mask_from(start);

    if (!word)
        index++;
    while (!word) {                     /* no bit in [start, index * BITS_PER_WORD) */
        if (index >= end)
            return -1;
        group = index >> GROUP_INDEX_SHIFT;
        if (group_is_passed(bits, group)) {
            index = summary_next(bits->summary, group, ((end - 1) >> GROUP_INDEX_SHIFT) + 1) << GROUP_INDEX_SHIFT;
            continue;
        }
        until = group_end(index, end);
        start = index;
        index = next_word(bits, index, until, 0);
        if (index < until)
            word = word_at(bits, index);        /* 0 if it was taken since: go on from here */
        else if (bits->summed && start % GROUP_SIZE == 0 && until == group_end(start, bits->nwords))
            sweep(bits, group);
    }
    start = index * BITS_PER_WORD + __builtin_ctzl(word);
    return start < stop ? (ssize_t)start : -1;
}

static ssize_t bits_find_clear(const struct bits *bits, size_t start, size_t stop)
{
    size_t index = start >> WORD_INDEX_SHIFT, end = ((stop - 1) >> WORD_INDEX_SHIFT) + 1;
    unsigned long word = ~word_at(bits, index) & mask_from(start);

    while (!word) {
        index = next_word(bits, index + 1, end, ~0UL);
        if (index >= end)
            return -1;
        word = ~word_at(bits, index);
    }
    start = index * BITS_PER_WORD + __builtin_ctzl(word);
    return start < stop ? (ssize_t)start : -1;
}

/* ---- counting ---- */

static inline size_t popcount_loop(const unsigned long *words, size_t n)
{
    size_t i, a = 0, b = 0, c = 0, d = 0;

    for (i = 0; i + 4 <= n; i += 4) {   /* four sums: the instruction takes three cycles */
        a += __builtin_popcountl(words[i]);
        b += __builtin_popcountl(words[i + 1]);
        c += __builtin_popcountl(words[i + 2]);
        d += __builtin_popcountl(words[i + 3]);
    }
    for (; i < n; i++)
        a += __builtin_popcountl(words[i]);
    return a + b + c + d;
}

#if defined(__x86_64__)
__attribute__((target("popcnt")))
static size_t popcount_popcnt(const unsigned long *words, size_t n)
{
    return popcount_loop(words, n);
}
#endif

static size_t popcount(const unsigned long *words, size_t n)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("popcnt"))
        return popcount_popcnt(words, n);
#endif
    return popcount_loop(words, n);
}

static ssize_t bits_count(const struct bits *bits, size_t start, size_t stop)
{
    size_t index = start >> WORD_INDEX_SHIFT, last = (stop - 1) >> WORD_INDEX_SHIFT, until, n;
    unsigned long head = word_at(bits, index) & mask_from(start), tail;

    if (index == last) {
        head &= mask_to(stop);
        return popcount(&head, 1);
    }
    tail = word_at(bits, last) & mask_to(stop);
    n = popcount(&head, 1) + popcount(&tail, 1);
    for (index++; index < last; index = until) {
        until = group_end(index, last);
        if (!group_is_passed(bits, index >> GROUP_INDEX_SHIFT))
            n += popcount(bits->words + index, until - index);
    }
    return n;
}

/* ---- changes ---- */

static inline unsigned long take_word(const struct bits *bits, size_t index, unsigned long mask)
{
    if (!(blkmig_word_load(bits->words + index) & mask))
        return 0;
    return blkmig_word_and(bits->words + index, ~mask) & mask;
}

static ssize_t bits_set(const struct bits *bits, size_t start, size_t stop)
{
    size_t index = start >> WORD_INDEX_SHIFT, last = (stop - 1) >> WORD_INDEX_SHIFT, until;

    if (index == last) {
        blkmig_set_word(bits->words, bits->summary, index, mask_from(start) & mask_to(stop));
        return 0;
    }
    blkmig_set_word(bits->words, bits->summary, index, mask_from(start));
    for (index++; index < last; index = until) {
        until = group_end(index, last);
        memset(bits->words + index, 0xff, (until - index) * sizeof *bits->words);
        __atomic_thread_fence(__ATOMIC_SEQ_CST);        /* words, then the summary */
        blkmig_set_summary(bits->summary, index >> GROUP_INDEX_SHIFT);
    }
    blkmig_set_word(bits->words, bits->summary, last, mask_to(stop));
    return 0;
}

static ssize_t bits_clear(const struct bits *bits, size_t start, size_t stop)
{
    size_t index = start >> WORD_INDEX_SHIFT, last = (stop - 1) >> WORD_INDEX_SHIFT, until;

    if (index == last)
        return take_word(bits, index, mask_from(start) & mask_to(stop)), 0;
    take_word(bits, index, mask_from(start));
    for (index++; index < last; index = until) {
        until = group_end(index, last);
        if (!group_is_passed(bits, index >> GROUP_INDEX_SHIFT))
            memset(bits->words + index, 0, (until - index) * sizeof *bits->words);
    }
    return take_word(bits, last, mask_to(stop)), 0;
}

/* Whether any bit was set. */
static ssize_t bits_take(const struct bits *bits, size_t start, size_t stop)
{
    size_t index = start >> WORD_INDEX_SHIFT, last = (stop - 1) >> WORD_INDEX_SHIFT;
    unsigned long mask = mask_from(start), taken = 0;

    for (; index < last; index++) {
        taken |= take_word(bits, index, mask);
        mask = ~0UL;
    }
    return (taken | take_word(bits, last, mask & mask_to(stop))) != 0;
}

struct merge_look {
    unsigned long any, missing;         /* bits that the other has; of these, those that are not here */
};

/* Plain loads: vectors. */
static inline __attribute__((always_inline))
struct merge_look merge_look_loop(const unsigned long *from, const unsigned long *to, size_t n)
{
    struct merge_look look = {0, 0};
    size_t i;

    for (i = 0; i < n; i++) {
        look.any |= from[i];
        look.missing |= from[i] & ~to[i];
    }
    return look;
}

#if defined(__x86_64__)
__attribute__((target("avx512f")))
static struct merge_look merge_look_avx512(const unsigned long *from, const unsigned long *to, size_t n)
{
    return merge_look_loop(from, to, n);
}
#endif

static struct merge_look merge_look(const unsigned long *from, const unsigned long *to, size_t n)
{
#if defined(__x86_64__)
    if (zero_uses_avx512())
        return merge_look_avx512(from, to, n);
#endif
    return merge_look_loop(from, to, n);
}

/* Most merges bring little that is new: they only look. */
static ssize_t bits_merge(const struct bits *bits, const struct bits *other)
{
    size_t index, until, i;

    for (index = 0; index < other->nwords; index = until) {
        const unsigned long *from = other->words + index;
        unsigned long *to = bits->words + index;
        struct merge_look look;

        until = group_end(index, other->nwords);
        if (group_is_passed(other, index >> GROUP_INDEX_SHIFT))
            continue;
        look = merge_look(from, to, until - index);
        for (i = 0; look.missing && i < until - index; i++)
            if (from[i] & ~word_at(bits, index + i))
                blkmig_word_or(to + i, from[i]);
        if (look.any)
            blkmig_set_summary(bits->summary, index >> GROUP_INDEX_SHIFT);
    }
    return 0;
}

/* Move all bits of `source` to `target`; how many. A word is emptied before the target gets it: the other way round a
 * bit that is set again between the two steps would be lost. */
static ssize_t bits_move(const struct bits *source, const struct bits *target)
{
    size_t index, until, group, moved = 0;
    unsigned long word;

    for (index = 0; index < source->nwords; index = until) {
        group = index >> GROUP_INDEX_SHIFT;
        until = group_end(index, source->nwords);
        if (group_is_passed(source, group))
            continue;
        for (; (index = next_word(source, index, until, 0)) < until; index++) {
            word = blkmig_word_swap(source->words + index, 0);
            if (!word)
                continue;
            blkmig_set_word(target->words, target->summary, index, word);
            moved += popcount(&word, 1);
        }
        if (source->summed)
            sweep(source, group);
    }
    return moved;
}

/* ---- the same with the GIL held, dropped for long ones; empty ranges are welcome ---- */

typedef ssize_t (*bits_range_fn)(const struct bits *, size_t start, size_t stop);
typedef ssize_t (*bits_pair_fn)(const struct bits *, const struct bits *);

static ssize_t bits_over(bits_range_fn fn, struct bits bits, size_t start, size_t stop)
{
    PyThreadState *state;
    ssize_t result;

    if (start >= stop)
        return 0;
    state = gil_drop((stop - start) / 8);
    result = fn(&bits, start, stop);
    gil_take(state);
    return result;
}

/* What is near is found before the GIL could be dropped. */
static ssize_t bits_find(bits_range_fn fn, struct bits bits, size_t start, size_t stop)
{
    size_t near = least(stop, (start + 8 * GIL_NBYTES) & ~(size_t)(GROUP_SIZE * BITS_PER_WORD - 1));
    PyThreadState *state;
    ssize_t bit;

    if (start >= stop)
        return -1;
    bit = fn(&bits, start, near);
    if (bit >= 0 || near == stop)
        return bit;
    state = gil_drop((stop - near) / 8);
    bit = fn(&bits, near, stop);
    gil_take(state);
    return bit;
}

static ssize_t bits_with(bits_pair_fn fn, struct bits bits, struct bits other)
{
    PyThreadState *state = gil_drop(bits.nwords * sizeof *bits.words);
    ssize_t result = fn(&bits, &other);

    gil_take(state);
    return result;
}

struct bits_area {
    size_t start, stop;
};

/* Clear the first runs of set bits, `most` at most, and tell which; how many. No bit is cleared that is not told. */
static size_t bits_take_areas(struct bits bits, size_t start, size_t stop, struct bits_area *areas, size_t most)
{
    PyThreadState *state = gil_drop(start < stop ? (stop - start) / 8 : 0);
    ssize_t first, end;
    size_t n;

    for (n = 0; n < most && start < stop; n++) {
        first = bits_find_set(&bits, start, stop);
        if (first < 0)
            break;
        end = bits_find_clear(&bits, first, stop);
        start = end < 0 ? stop : (size_t)end;
        bits_clear(&bits, first, start);
        areas[n].start = first;
        areas[n].stop = start;
    }
    gil_take(state);
    return n;
}

#endif
