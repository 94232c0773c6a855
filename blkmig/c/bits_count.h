/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * How many bits are set.
 */
#ifndef BLKMIG_BITS_COUNT_H
#define BLKMIG_BITS_COUNT_H

#include <sys/types.h>

#include "bits.h"

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
    size_t index = start >> BLKMIG_WORD_SHIFT, last = (stop - 1) >> BLKMIG_WORD_SHIFT, until, n;
    unsigned long head = word_at(bits, index) & mask_from(start), tail;

    if (index == last) {
        head &= mask_to(stop);
        return popcount(&head, 1);
    }
    tail = word_at(bits, last) & mask_to(stop);
    n = popcount(&head, 1) + popcount(&tail, 1);
    for (index++; index < last; index = until) {
        until = group_end(index, last);
        if (!group_is_passed(bits, index >> BLKMIG_GROUP_SHIFT))
            n += popcount(bits->words + index, until - index);
    }
    return n;
}

#endif
