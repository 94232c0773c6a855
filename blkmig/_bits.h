/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Loops over the words and the summary of a Bitmap.
 *
 * The searches read words that other threads may change: each word is read once, whole
 * (relaxed), so a result is true of some moment during the call.
 */
#ifndef BLKMIG_BITS_H
#define BLKMIG_BITS_H

#include <stddef.h>
#include <stdint.h>

#define word_ctz(word) __builtin_ctzl(word)

static inline unsigned long word_relaxed(const unsigned long *p)
{
    return __atomic_load_n(p, __ATOMIC_RELAXED);
}

static size_t words_popcount_portable(const unsigned long *words, size_t n)
{
    size_t i, bits = 0;

    for (i = 0; i < n; i++)
        bits += __builtin_popcountl(words[i]);
    return bits;
}

#if defined(__x86_64__)
__attribute__((target("popcnt")))
static size_t words_popcount_popcnt(const unsigned long *words, size_t n)
{
    size_t i, a = 0, b = 0, c = 0, d = 0;

    for (i = 0; i + 4 <= n; i += 4) {   /* four sums: the instruction's latency is three */
        a += __builtin_popcountl(words[i]);
        b += __builtin_popcountl(words[i + 1]);
        c += __builtin_popcountl(words[i + 2]);
        d += __builtin_popcountl(words[i + 3]);
    }
    for (; i < n; i++)
        a += __builtin_popcountl(words[i]);
    return a + b + c + d;
}
#endif

static size_t words_popcount(const unsigned long *words, size_t n)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("popcnt"))
        return words_popcount_popcnt(words, n);
#endif
    return words_popcount_portable(words, n);
}

/* Index of the first word in [from, to) that is not 0; `to` if there is none. */
static size_t words_next_set(const unsigned long *words, size_t from, size_t to)
{
    for (; from + 8 <= to; from += 8) {
        const unsigned long *w = words + from;
        if (word_relaxed(w) | word_relaxed(w + 1) | word_relaxed(w + 2) | word_relaxed(w + 3) |
            word_relaxed(w + 4) | word_relaxed(w + 5) | word_relaxed(w + 6) | word_relaxed(w + 7))
            break;
    }
    while (from < to && !word_relaxed(words + from))
        from++;
    return from;
}

/* Index of the first word in [from, to) that is not all ones; `to` if there is none. */
static size_t words_next_clear(const unsigned long *words, size_t from, size_t to)
{
    for (; from + 4 <= to; from += 4) {
        const unsigned long *w = words + from;
        if (~(word_relaxed(w) & word_relaxed(w + 1) & word_relaxed(w + 2) & word_relaxed(w + 3)))
            break;
    }
    while (from < to && !~word_relaxed(words + from))
        from++;
    return from < to ? from : to;
}

/* Index of the first byte in [from, to) that is not 0; `to` if there is none. Readable up to a multiple of 8. */
static size_t summary_next(const uint8_t *summary, size_t from, size_t to)
{
    while (from < to) {
        if ((from & 7) == 0 && __atomic_load_n((const uint64_t *)(summary + from), __ATOMIC_SEQ_CST) == 0) {
            from += 8;
            continue;
        }
        if (__atomic_load_n(summary + from, __ATOMIC_SEQ_CST) != 0)
            return from;
        from++;
    }
    return to;
}

static inline int summary_change(uint8_t *byte, uint8_t from, uint8_t to)
{
    int changed = __atomic_compare_exchange_n(byte, &from, to, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);    /* the plain loads of the second look come after this */
    return changed;
}

static inline int sweep_begin(uint8_t *sweeping)
{
    return __atomic_exchange_n(sweeping, 1, __ATOMIC_SEQ_CST) == 0;
}

static inline void sweep_end(uint8_t *sweeping)
{
    __atomic_store_n(sweeping, 0, __ATOMIC_SEQ_CST);
}

#endif
