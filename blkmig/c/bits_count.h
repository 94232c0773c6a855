/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * How many bits are set, by themselves or with the rest of their group.
 */
#ifndef BLKMIG_BITS_COUNT_H
#define BLKMIG_BITS_COUNT_H

#include <sys/types.h>

#include "bits.h"

static inline __attribute__((always_inline))
size_t popcount_loop(const unsigned long *words, size_t n)
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

/* As fast as the cache gives the words, wherever the linker puts the loop: that makes a fifth in the one above. */
__attribute__((target("avx512f,avx512vpopcntdq")))
static size_t popcount_avx512(const unsigned long *words, size_t n)
{
    __m512i a = _mm512_setzero_si512(), b = a;
    __mmask8 rest = (__mmask8)((1u << n % 8) - 1);
    size_t i;

    for (i = 0; i + 16 <= n; i += 16) {
        a = _mm512_add_epi64(a, _mm512_popcnt_epi64(_mm512_loadu_si512(words + i)));
        b = _mm512_add_epi64(b, _mm512_popcnt_epi64(_mm512_loadu_si512(words + i + 8)));
    }
    if (i + 8 <= n) {
        a = _mm512_add_epi64(a, _mm512_popcnt_epi64(_mm512_loadu_si512(words + i)));
        i += 8;
    }
    b = _mm512_add_epi64(b, _mm512_popcnt_epi64(_mm512_maskz_loadu_epi64(rest, words + i)));
    return (size_t)_mm512_reduce_add_epi64(_mm512_add_epi64(a, b));
}
#endif

static size_t popcount(const unsigned long *words, size_t n)
{
#if defined(__x86_64__)
    if (n >= 8 && zero_uses_avx512() && __builtin_cpu_supports("avx512vpopcntdq"))
        return popcount_avx512(words, n);
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

/* Groups that are parts of a word, or several words; `n` is a multiple of these. */
static inline __attribute__((always_inline))
size_t rounded_loop(const unsigned long *words, size_t n, size_t group, size_t enough)
{
    size_t each = group >> BLKMIG_WORD_SHIFT, i, found, sum = 0;
    unsigned long word;

    for (i = 0; each && i < n; i += each) {
        found = popcount_loop(words + i, each);
        sum += found >= enough ? group : found;
    }
    for (; i < n; i++)
        for (word = words[i]; word; word >>= group) {
            found = __builtin_popcountl(word & ~(~0UL << group));
            sum += found >= enough ? group : found;
        }
    return sum;
}

#if defined(__x86_64__)
__attribute__((target("popcnt")))
static size_t rounded_popcnt(const unsigned long *words, size_t n, size_t group, size_t enough)
{
    return rounded_loop(words, n, group, enough);
}
#endif

static size_t rounded(const unsigned long *words, size_t n, size_t group, size_t enough)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("popcnt"))
        return rounded_popcnt(words, n, group, enough);
#endif
    return rounded_loop(words, n, group, enough);
}

/* Count the set bits, and all bits of a group that has at least `enough` of them. A group is a power of two of bits, at
 * most those of BLKMIG_GROUP_WORDS; `start` and `stop` are multiples of it. */
static ssize_t bits_count_rounded(const struct bits *bits, size_t start, size_t stop, size_t group, size_t enough)
{
    size_t index = start >> BLKMIG_WORD_SHIFT, end = stop >> BLKMIG_WORD_SHIFT, until, n = 0;
    unsigned long word = word_at(bits, index) & mask_from(start);

    if (group == 1 || enough > group)
        return bits_count(bits, start, stop);
    if (index == end) {                 /* then the groups are parts of a word */
        word &= mask_to(stop);
        return rounded(&word, 1, group, enough);
    }
    if (start % BLKMIG_WORD_BITS) {
        n += rounded(&word, 1, group, enough);
        index++;
    }
    for (; index < end; index = until) {
        until = group_end(index, end);
        if (!group_is_passed(bits, index >> BLKMIG_GROUP_SHIFT))
            n += rounded(bits->words + index, until - index, group, enough);
    }
    if (stop % BLKMIG_WORD_BITS) {
        word = word_at(bits, end) & mask_to(stop);
        n += rounded(&word, 1, group, enough);
    }
    return n;
}

#endif
