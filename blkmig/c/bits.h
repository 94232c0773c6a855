/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A Bitmap's words and its summary, as the loops over them see both (the class tells what the summary is, and why it is
 * right). What is here keeps the summary true; searches, counts and changes have headers of their own: bits_find.h,
 * bits_count.h, bits_change.h.
 *
 * Other threads may change words at any time. What is read is read a word at a time, relaxed, or as a vector of words
 * that are looked at again one by one, so a result was true at some moment of the call. What is written is written in
 * one atomic step per word, with blkmig_set_word() or take_word(), or by memset() where all bits of a word get the same
 * value: whatever the order of its stores, each bit is then set, or cleared, at one moment, and no other bit is touched.
 * Ranges are [start, stop) and not empty.
 */
#ifndef BLKMIG_BITS_H
#define BLKMIG_BITS_H

#include "contract.h"
#include "zero.h"

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
    return ~0UL << (bit % BLKMIG_WORD_BITS);
}

static inline unsigned long mask_to(size_t bit)
{
    return ~0UL >> (-bit % BLKMIG_WORD_BITS);
}

static inline size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

static inline int group_is_passed(const struct bits *bits, size_t group)
{
    return bits->summed && __atomic_load_n(bits->summary + group, __ATOMIC_SEQ_CST) == 0;
}

static inline size_t group_end(size_t index, size_t nwords)
{
    return least(nwords, ((index >> BLKMIG_GROUP_SHIFT) + 1) << BLKMIG_GROUP_SHIFT);
}

static int group_is_zero(const struct bits *bits, size_t group)
{
    size_t first = group << BLKMIG_GROUP_SHIFT;

    return zero_run(zero_chosen, bits->words + first, (group_end(first, bits->nwords) - first) * sizeof *bits->words);
}

/* Index of the first byte in [from, to) that is not 0, or `to`. Readable up to a multiple of 8. */
static size_t summary_next(const uint8_t *summary, size_t from, size_t to)
{
#define LOOK(i) __atomic_load_n((const uint64_t *)(summary + from + (i)), __ATOMIC_SEQ_CST)
    while (from < to) {
        if (from % 8 == 0) {
            if (from + 32 <= to && (LOOK(0) | LOOK(8) | LOOK(16) | LOOK(24)) == 0) {
                from += 32;
                continue;
            }
            if (LOOK(0) == 0) {
                from += 8;
                continue;
            }
        }
        if (__atomic_load_n(summary + from, __ATOMIC_SEQ_CST) != 0)
            return from;
        from++;
    }
    return to;
#undef LOOK
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
    size_t group, ngroups = (bits->nwords + BLKMIG_GROUP_WORDS - 1) >> BLKMIG_GROUP_SHIFT;

    for (group = 0; group < ngroups; group++)
        if (!group_is_zero(bits, group))
            __atomic_store_n(bits->summary + group, 1, __ATOMIC_SEQ_CST);
}

#endif
