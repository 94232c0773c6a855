/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Searches of a bitmap: the bit, or -1 if there is none in the range.
 */
#ifndef BLKMIG_BITS_FIND_H
#define BLKMIG_BITS_FIND_H

#include <sys/types.h>

#include "bits.h"

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
    size_t index = start >> BLKMIG_WORD_SHIFT, end = ((stop - 1) >> BLKMIG_WORD_SHIFT) + 1, group, until;
    unsigned long word = word_at(bits, index) & mask_from(start);

    if (!word)
        index++;
    while (!word) {                     /* no bit in [start, index * BLKMIG_WORD_BITS) */
        if (index >= end)
            return -1;
        group = index >> BLKMIG_GROUP_SHIFT;
        if (group_is_passed(bits, group)) {
            index = summary_next(bits->summary, group, ((end - 1) >> BLKMIG_GROUP_SHIFT) + 1) << BLKMIG_GROUP_SHIFT;
            continue;
        }
        until = group_end(index, end);
        start = index;
        index = next_word(bits, index, until, 0);
        if (index < until)
            word = word_at(bits, index);        /* 0 if it was taken since: go on from here */
        else if (bits->summed && start % BLKMIG_GROUP_WORDS == 0 && until == group_end(start, bits->nwords))
            sweep(bits, group);
    }
    start = index * BLKMIG_WORD_BITS + __builtin_ctzl(word);
    return start < stop ? (ssize_t)start : -1;
}

static ssize_t bits_find_clear(const struct bits *bits, size_t start, size_t stop)
{
    size_t index = start >> BLKMIG_WORD_SHIFT, end = ((stop - 1) >> BLKMIG_WORD_SHIFT) + 1;
    unsigned long word = ~word_at(bits, index) & mask_from(start);

    while (!word) {
        index = next_word(bits, index + 1, end, ~0UL);
        if (index >= end)
            return -1;
        word = ~word_at(bits, index);
    }
    start = index * BLKMIG_WORD_BITS + __builtin_ctzl(word);
    return start < stop ? (ssize_t)start : -1;
}

#endif
