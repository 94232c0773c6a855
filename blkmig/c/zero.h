/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Is a buffer all zeros?  One kernel per instruction set, all with one shape:
 *
 *     |head|.......aligned blocks, early out after each.......|tail|
 *      ^ unaligned load                           unaligned load ^
 *
 * The head and tail loads overlap the blocks, so no length and no alignment
 * needs a byte loop; blocks start at a 64-byte boundary because a load that
 * straddles two cache lines costs twice (measured: 82 against 142 GB/s).
 * Kernels take n >= ZERO_KERNEL_MIN; zero_sample() and zero_small() come first.
 */
#ifndef BLKMIG_ZERO_H
#define BLKMIG_ZERO_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__) && defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#define ZERO_KERNEL_MIN 64

typedef int (*zero_kernel_fn)(const unsigned char *p, size_t n);

static inline uint64_t zero_load64(const unsigned char *p)
{
    uint64_t word;
    memcpy(&word, p, sizeof word);
    return word;
}

/* First aligned block behind the head: at most 64 bytes on, never before p + 1. */
static inline const unsigned char *zero_align64(const unsigned char *p)
{
    return (const unsigned char *)(((uintptr_t)p + 64) & ~(uintptr_t)63);
}

/* The ends and the middle tell most data from zeros in 2 ns (QEMU's observation). n >= 8. */
static inline int zero_sample(const unsigned char *p, size_t n)
{
    return (zero_load64(p) | zero_load64(p + n / 2 - 4) | zero_load64(p + n - 8)) == 0;
}

static inline int zero_small(const unsigned char *p, size_t n)
{
    uint64_t any = 0;
    size_t i;

    if (n >= 8) {
        for (i = 0; i + 8 < n; i += 8)
            any |= zero_load64(p + i);
        return (any | zero_load64(p + n - 8)) == 0;
    }
    for (i = 0; i < n; i++)
        any |= p[i];
    return any == 0;
}

static int zero_portable(const unsigned char *p, size_t n)
{
    const unsigned char *end = p + n, *q = zero_align64(p);
    uint64_t any;
    int i;

    for (any = 0, i = 0; i < 64; i += 8)
        any |= zero_load64(p + i) | zero_load64(end - 64 + i);
    if (any)
        return 0;
    for (; q + 64 <= end; q += 64) {
        for (any = 0, i = 0; i < 64; i += 8)
            any |= zero_load64(q + i);
        if (any)
            return 0;
    }
    return 1;
}

#if defined(__x86_64__)

__attribute__((target("avx2")))
static int zero_avx2(const unsigned char *p, size_t n)
{
    const unsigned char *end = p + n, *q = zero_align64(p);
    __m256i any = _mm256_or_si256(
        _mm256_or_si256(_mm256_loadu_si256((const void *)p), _mm256_loadu_si256((const void *)(p + 32))),
        _mm256_or_si256(_mm256_loadu_si256((const void *)(end - 64)), _mm256_loadu_si256((const void *)(end - 32))));

    if (!_mm256_testz_si256(any, any))
        return 0;
    for (; q + 256 <= end; q += 256) {
        const __m256i *v = (const void *)q;
        any = _mm256_or_si256(_mm256_or_si256(_mm256_or_si256(v[0], v[1]), _mm256_or_si256(v[2], v[3])),
                              _mm256_or_si256(_mm256_or_si256(v[4], v[5]), _mm256_or_si256(v[6], v[7])));
        if (!_mm256_testz_si256(any, any))
            return 0;
    }
    for (; q + 64 <= end; q += 64) {
        const __m256i *v = (const void *)q;
        any = _mm256_or_si256(v[0], v[1]);
        if (!_mm256_testz_si256(any, any))
            return 0;
    }
    return 1;
}

/* Three at once, which also keeps the loads in the order of memory: gcc 12 makes of a tree of eight ORs one that begins
 * in the middle, and the prefetcher then gives up (zen 4, from DRAM: 8 against 15 GB/s). */
#define zero_or3(a, b, c) _mm512_ternarylogic_epi64(a, b, c, 0xfe)

__attribute__((target("avx512f")))
static int zero_avx512(const unsigned char *p, size_t n)
{
    const unsigned char *end = p + n, *q = zero_align64(p);
    __m512i any = _mm512_or_si512(_mm512_loadu_si512(p), _mm512_loadu_si512(end - 64));

    if (_mm512_test_epi64_mask(any, any))
        return 0;
    for (; q + 512 <= end; q += 512) {
        const __m512i *v = (const void *)q;
        any = _mm512_or_si512(zero_or3(zero_or3(v[0], v[1], v[2]), v[3], v[4]), zero_or3(v[5], v[6], v[7]));
        if (_mm512_test_epi64_mask(any, any))
            return 0;
    }
    for (; q + 64 <= end; q += 64) {
        any = *(const __m512i *)q;
        if (_mm512_test_epi64_mask(any, any))
            return 0;
    }
    return 1;
}

#elif defined(__aarch64__) && defined(__ARM_NEON)

static inline int zero_neon_any(uint8x16_t v)
{
    return vmaxvq_u8(v) != 0;
}

static inline uint8x16_t zero_neon_or64(const unsigned char *p)
{
    return vorrq_u8(vorrq_u8(vld1q_u8(p), vld1q_u8(p + 16)), vorrq_u8(vld1q_u8(p + 32), vld1q_u8(p + 48)));
}

static int zero_neon(const unsigned char *p, size_t n)
{
    const unsigned char *end = p + n, *q = zero_align64(p);

    if (zero_neon_any(vorrq_u8(zero_neon_or64(p), zero_neon_or64(end - 64))))
        return 0;
    for (; q + 128 <= end; q += 128)
        if (zero_neon_any(vorrq_u8(zero_neon_or64(q), zero_neon_or64(q + 64))))
            return 0;
    return q + 64 > end || !zero_neon_any(zero_neon_or64(q));
}

#endif

/* Every kernel this build knows, slowest first; `fn` is NULL where the CPU cannot run it. */
struct zero_kernel {
    const char *name;
    zero_kernel_fn fn;
};

static struct zero_kernel zero_kernels_built[] = {
    {"portable", zero_portable},
#if defined(__x86_64__)
    {"avx2", NULL},
    {"avx512", NULL},
#elif defined(__aarch64__) && defined(__ARM_NEON)
    {"neon", zero_neon},
#endif
};

static const int zero_kernels_built_count = sizeof zero_kernels_built / sizeof zero_kernels_built[0];

static void zero_detect(void)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2"))
        zero_kernels_built[1].fn = zero_avx2;
    if (__builtin_cpu_supports("avx512f"))
        zero_kernels_built[2].fn = zero_avx512;
#endif
}

/* The one that is used, set at import. */
static zero_kernel_fn zero_chosen = zero_portable;

#if defined(__x86_64__)
/* Other loops follow the choice. */
static inline int zero_uses_avx512(void)
{
    return zero_chosen == zero_avx512;
}
#endif

static inline int zero_run(zero_kernel_fn kernel, const void *buffer, size_t n)
{
    const unsigned char *p = buffer;

    if (n < ZERO_KERNEL_MIN)
        return zero_small(p, n);
    return zero_sample(p, n) && kernel(p, n);
}

#endif
