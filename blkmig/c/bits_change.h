/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Changes of a bitmap: bits set, cleared and taken, one map added to another or moved into it.
 */
#ifndef BLKMIG_BITS_CHANGE_H
#define BLKMIG_BITS_CHANGE_H

#include "bits_count.h"
#include "bits_find.h"

static inline unsigned long take_word(const struct bits *bits, size_t index, unsigned long mask)
{
    if (!(blkmig_word_load(bits->words + index) & mask))
        return 0;
    return blkmig_word_and(bits->words + index, ~mask) & mask;
}

static ssize_t bits_set(const struct bits *bits, size_t start, size_t stop)
{
    size_t index = start >> BLKMIG_WORD_SHIFT, last = (stop - 1) >> BLKMIG_WORD_SHIFT, until;

    if (index == last) {
        blkmig_set_word(bits->words, bits->summary, index, mask_from(start) & mask_to(stop));
        return 0;
    }
    blkmig_set_word(bits->words, bits->summary, index, mask_from(start));
    for (index++; index < last; index = until) {
        until = group_end(index, last);
        memset(bits->words + index, 0xff, (until - index) * sizeof *bits->words);
        __atomic_thread_fence(__ATOMIC_SEQ_CST);        /* words, then the summary */
        blkmig_set_summary(bits->summary, index >> BLKMIG_GROUP_SHIFT);
    }
    blkmig_set_word(bits->words, bits->summary, last, mask_to(stop));
    return 0;
}

static ssize_t bits_clear(const struct bits *bits, size_t start, size_t stop)
{
    size_t index = start >> BLKMIG_WORD_SHIFT, last = (stop - 1) >> BLKMIG_WORD_SHIFT, until;

    if (index == last)
        return take_word(bits, index, mask_from(start) & mask_to(stop)), 0;
    take_word(bits, index, mask_from(start));
    for (index++; index < last; index = until) {
        until = group_end(index, last);
        if (!group_is_passed(bits, index >> BLKMIG_GROUP_SHIFT))
            memset(bits->words + index, 0, (until - index) * sizeof *bits->words);
    }
    return take_word(bits, last, mask_to(stop)), 0;
}

/* Whether any bit was set. */
static ssize_t bits_take(const struct bits *bits, size_t start, size_t stop)
{
    size_t index = start >> BLKMIG_WORD_SHIFT, last = (stop - 1) >> BLKMIG_WORD_SHIFT, until;
    unsigned long taken;

    if (index == last)
        return take_word(bits, index, mask_from(start) & mask_to(stop)) != 0;
    taken = take_word(bits, index, mask_from(start));
    for (index++; index < last; index = until) {
        until = group_end(index, last);
        if (group_is_passed(bits, index >> BLKMIG_GROUP_SHIFT))
            continue;
        for (; index < until; index++)
            taken |= take_word(bits, index, ~0UL);
    }
    return (taken | take_word(bits, last, mask_to(stop))) != 0;
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
        if (group_is_passed(other, index >> BLKMIG_GROUP_SHIFT))
            continue;
        look = merge_look(from, to, until - index);
        for (i = 0; look.missing && i < until - index; i++)
            if (from[i] & ~word_at(bits, index + i))
                blkmig_word_or(to + i, from[i]);
        if (look.any)
            blkmig_set_summary(bits->summary, index >> BLKMIG_GROUP_SHIFT);
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
        group = index >> BLKMIG_GROUP_SHIFT;
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

struct bits_area {
    size_t start, stop;
};

/* Clear the first runs of set bits, `most` at most, and tell which; how many. No bit is cleared that is not told. */
static size_t bits_take_areas(const struct bits *bits, size_t start, size_t stop, struct bits_area *areas, size_t most)
{
    ssize_t first, end;
    size_t n;

    for (n = 0; n < most && start < stop; n++) {
        first = bits_find_set(bits, start, stop);
        if (first < 0)
            break;
        end = bits_find_clear(bits, first, stop);
        start = end < 0 ? stop : (size_t)end;
        bits_clear(bits, first, start);
        areas[n].start = first;
        areas[n].stop = start;
    }
    return n;
}

#endif
