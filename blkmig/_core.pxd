# SPDX-License-Identifier: GPL-2.0-or-later
# The contract of blkmig._core for other packages: ``cimport blkmig._core``.
#
# Everything in the first part is C: it takes pointers, needs no GIL and raises nothing. The inline functions compile
# into the importing module; the others come through the module's capsules. No header and no include path is needed,
# which is why the text of c/contract.h stands here, too.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t


cdef extern from *:
    """
    #ifndef BLKMIG_CONTRACT_H
    #define BLKMIG_CONTRACT_H

    #include <stddef.h>
    #include <stdint.h>
    #include <string.h>

    /* Offsets and lengths of disks go through size_t, Py_ssize_t and pointers into mappings of whole files. */
    #if __SIZEOF_SIZE_T__ < 8 || __SIZEOF_LONG__ < 8
    #error "blkmig needs a 64-bit system: disks are larger than a 32-bit program can address"
    #endif

    enum {
        BLKMIG_BLOCK_SIZE = 1 << 20,
        BLKMIG_SECTOR_SIZE = 512,
        BLKMIG_SECTOR_BITS = 9,
        BLKMIG_SECTORS_PER_BLOCK = 2048,

        BLKMIG_DEVICE_BLOCK = 1,            /* flags of a record: the low bits of its word */
        BLKMIG_EOS = 2,
        BLKMIG_PROGRESS = 4,
        BLKMIG_ZERO_BLOCK = 8,
        BLKMIG_FLAG_MASK = BLKMIG_SECTOR_SIZE - 1,

        BLKMIG_WORD_BITS = 8 * sizeof(unsigned long),
        BLKMIG_WORD_SHIFT = 6,
        BLKMIG_GROUP_SHIFT = 9,             /* 4 KiB of words under one byte of a Bitmap's summary */
        BLKMIG_GROUP_WORDS = 1 << BLKMIG_GROUP_SHIFT,
    };

    #if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    #define blkmig_swap16(v) __builtin_bswap16(v)
    #define blkmig_swap32(v) __builtin_bswap32(v)
    #define blkmig_swap64(v) __builtin_bswap64(v)
    #else
    #define blkmig_swap16(v) (v)
    #define blkmig_swap32(v) (v)
    #define blkmig_swap64(v) (v)
    #endif

    /* memcpy: the fields of a stream stand at any address. */
    static inline uint16_t blkmig_load_be16(const void *p) { uint16_t v; memcpy(&v, p, 2); return blkmig_swap16(v); }
    static inline uint32_t blkmig_load_be32(const void *p) { uint32_t v; memcpy(&v, p, 4); return blkmig_swap32(v); }
    static inline uint64_t blkmig_load_be64(const void *p) { uint64_t v; memcpy(&v, p, 8); return blkmig_swap64(v); }
    static inline void blkmig_store_be16(void *p, uint16_t v) { v = blkmig_swap16(v); memcpy(p, &v, 2); }
    static inline void blkmig_store_be32(void *p, uint32_t v) { v = blkmig_swap32(v); memcpy(p, &v, 4); }
    static inline void blkmig_store_be64(void *p, uint64_t v) { v = blkmig_swap64(v); memcpy(p, &v, 8); }

    #define blkmig_word_load(p) __atomic_load_n((p), __ATOMIC_SEQ_CST)
    #define blkmig_word_or(p, mask) __atomic_fetch_or((p), (mask), __ATOMIC_SEQ_CST)
    #define blkmig_word_and(p, mask) __atomic_fetch_and((p), (mask), __ATOMIC_SEQ_CST)
    #define blkmig_word_swap(p, value) __atomic_exchange_n((p), (value), __ATOMIC_SEQ_CST)

    /* The word before its byte of the summary, always. Test first: a line that is only read stays in all caches. */
    static inline void blkmig_set_summary(uint8_t *summary, size_t group)
    {
        if (__atomic_load_n(summary + group, __ATOMIC_SEQ_CST) != 1)
            __atomic_store_n(summary + group, 1, __ATOMIC_SEQ_CST);
    }

    static inline void blkmig_set_word(unsigned long *words, uint8_t *summary, size_t index, unsigned long mask)
    {
        if ((blkmig_word_load(words + index) & mask) != mask)
            blkmig_word_or(words + index, mask);
        blkmig_set_summary(summary, index >> BLKMIG_GROUP_SHIFT);
    }

    #endif
    """
    enum:
        BLOCK_SIZE "BLKMIG_BLOCK_SIZE"
        SECTOR_SIZE "BLKMIG_SECTOR_SIZE"
        SECTOR_BITS "BLKMIG_SECTOR_BITS"
        SECTORS_PER_BLOCK "BLKMIG_SECTORS_PER_BLOCK"

        FLAG_DEVICE_BLOCK "BLKMIG_DEVICE_BLOCK"
        FLAG_EOS "BLKMIG_EOS"
        FLAG_PROGRESS "BLKMIG_PROGRESS"
        FLAG_ZERO_BLOCK "BLKMIG_ZERO_BLOCK"
        FLAG_MASK "BLKMIG_FLAG_MASK"

        WORD_BITS "BLKMIG_WORD_BITS"
        WORD_SHIFT "BLKMIG_WORD_SHIFT"
        GROUP_WORDS "BLKMIG_GROUP_WORDS"

    uint16_t load_be16 "blkmig_load_be16"(const void* p) noexcept nogil
    uint32_t load_be32 "blkmig_load_be32"(const void* p) noexcept nogil
    uint64_t load_be64 "blkmig_load_be64"(const void* p) noexcept nogil
    void store_be16 "blkmig_store_be16"(void* p, uint16_t value) noexcept nogil
    void store_be32 "blkmig_store_be32"(void* p, uint32_t value) noexcept nogil
    void store_be64 "blkmig_store_be64"(void* p, uint64_t value) noexcept nogil
    unsigned long word_load "blkmig_word_load"(const unsigned long* p) noexcept nogil
    unsigned long word_or "blkmig_word_or"(unsigned long* p, unsigned long mask) noexcept nogil
    unsigned long word_and "blkmig_word_and"(unsigned long* p, unsigned long mask) noexcept nogil
    unsigned long word_swap "blkmig_word_swap"(unsigned long* p, unsigned long value) noexcept nogil
    void set_word "blkmig_set_word"(
        unsigned long* words, uint8_t* summary, size_t index, unsigned long mask
    ) noexcept nogil


# Whether n bytes at `buffer` are all zero; any alignment, any length.
cdef bint buffer_is_zero_c "blkmig_buffer_is_zero"(const void* buffer, size_t n) noexcept nogil


cdef class Bitmap:
    # `words` holds `size` bits, bit i in words[i / WORD_BITS]; the bits behind `size` are 0.
    # Read the words as you like, but set bits with set_bit() below: it keeps the summary true.
    cdef unsigned long* words
    cdef size_t size
    cdef size_t nwords
    cdef uint8_t* summary           # see the class in _core.pyx
    cdef Py_ssize_t exports         # views of the words that are alive; under the GIL
    cdef bint stale                 # somebody may have written words past the summary; under the GIL
    cdef uint8_t sweeping           # atomic: a thread clears summary bytes
    cdef void* memory               # what `words` stands in, from a cache line on


cdef inline bint test_bit(Bitmap bitmap, size_t bit) noexcept nogil:
    return (word_load(&bitmap.words[bit >> WORD_SHIFT]) >> (bit & (WORD_BITS - 1))) & 1


cdef inline void set_bit(Bitmap bitmap, size_t bit) noexcept nogil:
    set_word(bitmap.words, bitmap.summary, bit >> WORD_SHIFT, 1UL << (bit & (WORD_BITS - 1)))


cdef inline bint take_bit(Bitmap bitmap, size_t bit) noexcept nogil:
    # Clear the bit; whether it was set.
    cdef unsigned long mask = 1UL << (bit & (WORD_BITS - 1))
    if not word_load(&bitmap.words[bit >> WORD_SHIFT]) & mask:
        return False
    return (word_and(&bitmap.words[bit >> WORD_SHIFT], ~mask) & mask) != 0


# ---- for the extensions beside it, _gate, _output, _input and _storing: no contract, it changes as they do ----

cdef enum:
    # Long loops run without the GIL, short ones with it: to drop it and to take it again costs 50 ns, and up to a whole
    # switch interval where another thread takes it meanwhile. 512 KiB are 3 us in the L2, 10 in the memory.
    GIL_NBYTES = 512 << 10


cdef extern from *:
    """
    struct pipes;
    """
    struct pipes:
        pass


cdef class Mapping:
    cdef uint8_t* base
    cdef int fd                     # its own
    cdef size_t length
    cdef bint closed


cdef enum payload_kind:             # what may become of a payload: see BlockBuffer
    PAYLOAD_OWN
    PAYLOAD_MAPPED
    PAYLOAD_LENT
    PAYLOAD_GIVEN
    PAYLOAD_MOVED
    PAYLOAD_PIPED


cdef class BlockBuffer:
    cdef uint8_t* own               # BLOCK_SIZE bytes
    cdef uint8_t* gifts             # of a given payload: `own` is one half of it; else NULL
    cdef bint gave                  # the pages of `own` stand in a pipe, too: nobody may write them any more
    cdef readonly Py_ssize_t given  # how many bytes the payload was last said to have; -1 when somebody is to say it
    cdef bint zero                  # all of the payload is zero, as far as a scan has told
    cdef Mapping mapping            # None: the payload is `own`
    cdef int64_t offset             # of a mapped payload
    cdef pipes* pipes               # hold a payload that nobody has looked at, on its way to a file
    cdef payload_kind which         # for as long as it lives
    cdef Py_ssize_t exports         # views of `own` that are alive; under the GIL
    cdef bint busy                  # a thread is at the payload without the GIL; under the GIL
    cdef bint sending               # it only reads the payload, so that others may look at it, too


# All with the GIL, but for store_payload. The range of set_bits and clear_bits must be one that check_range let pass.
cdef int check_range(Bitmap bitmap, Py_ssize_t start, Py_ssize_t count) except -1
cdef int set_bits(Bitmap bitmap, size_t start, size_t stop) except -1
cdef int clear_bits(Bitmap bitmap, size_t start, size_t stop) except -1
cdef int check_record(uint64_t sector, uint64_t flags, bytes name) except -1
cdef size_t extents_of(list extents, uint64_t* pairs) except 0
cdef int check_zero_run(uint64_t sector, uint64_t count, bytes name) except -1
cdef int begin_block(BlockBuffer blk) except -1
cdef int forget_block(BlockBuffer blk, Py_ssize_t nbytes) except -1
cdef int take_block_back(BlockBuffer blk) except -1
cdef int read_block_mapped(BlockBuffer blk, Mapping mapping, int fd, int64_t offset, Py_ssize_t nbytes) except -1
cdef Py_ssize_t store_payload(
    pipes* pipes, uint8_t* own, int fd, int64_t offset, size_t cluster, bint allocate, size_t places
) except -1 nogil
