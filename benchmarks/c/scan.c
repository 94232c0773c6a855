/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a zero scan is compared with: the limit, and how others do it.  Each scans a buffer `times` times.
 *
 * The buffers hold zeros and n is a multiple of 512, so nobody leaves early and tails do not matter.
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
typedef long long vec __attribute__((vector_size(64), may_alias));
#elif defined(__AVX2__)
typedef long long vec __attribute__((vector_size(32), may_alias));
#else
typedef long long vec __attribute__((vector_size(16), may_alias));
#endif
typedef long long vec32 __attribute__((vector_size(32), may_alias));

static int any(const void *v, size_t n)
{
    const unsigned char *p = v;
    int bits = 0;

    while (n--)
        bits |= *p++;
    return bits != 0;
}

/* The limit: load everything into four streams, decide nothing. p is aligned. */
int pure_load(const unsigned char *p, size_t n, int times)
{
    vec a = {0}, b = {0}, c = {0}, d = {0};

    while (times--) {
        const vec *v = (const void *)p, *end = (const void *)(p + n);
        for (; v < end; v += 4) {
            a |= v[0];
            b |= v[1];
            c |= v[2];
            d |= v[3];
        }
        __asm__ volatile("" ::: "memory");
    }
    a |= b | c | d;
    return !any(&a, sizeof a);
}

/* As QEMU's AVX2 scan does it: 128 bytes a step, each tested while the next is being loaded. */
int avx2_pipelined(const unsigned char *p, size_t n, int times)
{
    int zero = 1;

    while (times--) {
        const vec32 *v = (const void *)p, *end = (const void *)(p + n);
        vec32 now = v[0] | v[1] | v[2] | v[3];
        for (v += 4; v < end; v += 4) {
            vec32 next = v[0] | v[1] | v[2] | v[3];
#if defined(__AVX__)
            if (!__builtin_ia32_ptestz256(now, now))
                return 0;
#else
            if (now[0] | now[1] | now[2] | now[3])
                return 0;
#endif
            now = next;
        }
        zero &= !any(&now, sizeof now);
        __asm__ volatile("" ::: "memory");
    }
    return zero;
}

/* A buffer that begins with zero and equals itself a few bytes on is all zero: nbdkit, libnbd, imageio. */
int memcmp_itself(const unsigned char *p, size_t n, int times)
{
    int zero = 1;

    while (times--) {
        zero &= !any(p, 16) && memcmp(p, p + 16, n - 16) == 0;
        __asm__ volatile("" ::: "memory");      /* not all of them at once */
    }
    return zero;
}
