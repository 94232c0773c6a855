# SPDX-License-Identifier: GPL-2.0-or-later
# What _core.pyx uses of the headers beside it. Not a contract: other packages cimport _core.

from libc.stdint cimport int64_t, uint8_t, uint64_t


cdef extern from *:
    """
    /* Cython makes a C integer of whatever has an __int__, also of 1.9. Here a number is what has an __index__. */
    #define nb_int nb_index
    """

cdef extern from "c/gil.h":
    enum:
        GIL_NBYTES

cdef extern from "c/fork.h":
    unsigned fork_count
    void fork_watch() noexcept nogil

cdef extern from "c/zero.h":
    ctypedef int (*zero_kernel_fn)(const uint8_t*, size_t) noexcept nogil
    struct zero_kernel_entry "zero_kernel":
        const char* name
        zero_kernel_fn fn
    zero_kernel_entry* zero_kernels_built
    int zero_kernels_built_count
    zero_kernel_fn zero_chosen
    void zero_detect() noexcept nogil
    bint zero_run(zero_kernel_fn, const void*, size_t) noexcept nogil
    bint zero_scan(zero_kernel_fn, const void*, size_t) noexcept

cdef extern from "c/bits.h":
    struct bits:
        unsigned long* words
        uint8_t* summary
        uint8_t* sweeping
        size_t nwords
        bint summed
    struct bits_area:
        size_t start, stop
    void bits_summarise(const bits*) noexcept nogil

    # For bits_over, the searches for bits_find, the last two for bits_with.
    Py_ssize_t bits_find_set(const bits*, size_t start, size_t stop) noexcept nogil
    Py_ssize_t bits_find_clear(const bits*, size_t start, size_t stop) noexcept nogil
    Py_ssize_t bits_count(const bits*, size_t start, size_t stop) noexcept nogil
    Py_ssize_t bits_set(const bits*, size_t start, size_t stop) noexcept nogil
    Py_ssize_t bits_clear(const bits*, size_t start, size_t stop) noexcept nogil
    Py_ssize_t bits_take(const bits*, size_t start, size_t stop) noexcept nogil
    Py_ssize_t bits_merge(const bits*, const bits* other) noexcept nogil
    Py_ssize_t bits_move(const bits*, const bits* target) noexcept nogil

    # These drop the GIL where that pays.
    ctypedef Py_ssize_t (*bits_range_fn)(const bits*, size_t start, size_t stop) noexcept nogil
    ctypedef Py_ssize_t (*bits_pair_fn)(const bits*, const bits*) noexcept nogil
    Py_ssize_t bits_over(bits_range_fn, bits, size_t start, size_t stop) noexcept
    Py_ssize_t bits_find(bits_range_fn, bits, size_t start, size_t stop) noexcept
    Py_ssize_t bits_with(bits_pair_fn, bits, bits) noexcept
    size_t bits_take_areas(bits, size_t start, size_t stop, bits_area*, size_t most) noexcept

cdef extern from "c/frame.h":
    struct frame_run:
        uint64_t word
        size_t count
        const char* name
        size_t length
        size_t nbytes
    void frame_put_number(uint8_t*, uint64_t value, size_t) noexcept nogil
    uint64_t frame_get_number(const uint8_t*, size_t) noexcept nogil
    size_t frame_head(uint8_t*, uint64_t word, const char* name, size_t length) noexcept nogil
    void frame_zero_records(uint8_t*, uint64_t word, size_t count, const char* name, size_t length) noexcept nogil
    void frame_zero_run(uint8_t*, uint64_t word, size_t count, const char* name, size_t length) noexcept
    frame_run frame_parse(const uint8_t*, size_t) noexcept nogil

cdef extern from "c/io.h":
    int FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE
    int io_fail(int error) except -1 nogil
    Py_ssize_t io_pread(int fd, uint8_t*, size_t, int64_t offset) except -1 nogil
    int io_pwrite(int fd, const uint8_t*, size_t, int64_t offset) except -1 nogil
    int io_fallocate(int fd, int mode, int64_t offset, int64_t) except -1 nogil
    int io_zero_out(int fd, uint64_t offset, uint64_t) except -1 nogil
    int io_start_writeback(int fd) except -1 nogil
    int io_next_data(int fd, int64_t offset, int64_t size, int64_t* start, int64_t* end) except -1 nogil
    Py_ssize_t io_store_sparse(
        int fd, const uint8_t*, size_t, int64_t offset, size_t, bint punch, bint allocate, uint8_t*) except -1 nogil
    double io_seconds() noexcept nogil
    bint io_populate(uint8_t*, size_t) noexcept nogil
    uint8_t* io_map(int fd, size_t, int* own) except NULL
    void io_unmap(uint8_t*, size_t, int own) noexcept nogil
    uint8_t* io_alloc_pages(size_t) except NULL

cdef extern from "c/stream.h":
    enum: STREAM_USEFUL
    struct stream:
        uint8_t* staging
        size_t capacity, head, tail
        bint busy
        uint64_t position, flushed
        size_t ahead
        bint takes_pages, peeks, naps
        double idle, first
        uint64_t useful
    int stream_init(stream*, int fd, Py_ssize_t capacity, int wake_fd) except -1
    int stream_check(const stream*) except -1
    bint stream_expect_pages(stream*) noexcept nogil
    void stream_staged(stream*, size_t) noexcept nogil
    int stream_send(stream*, const uint8_t* end, size_t* left, int file, int64_t until, bint mapped) except -1 nogil
    int stream_unpeek(stream*, size_t rest) except -1
    int stream_unstage(stream*) except -1
    void stream_consume(stream*, size_t) noexcept nogil
    int stream_need(stream*, size_t) except -1
    int stream_skip(stream*, uint64_t, bint useful) except -1
    uint64_t stream_skip_words(stream*, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t) except? 0
    int stream_take(stream*, uint8_t*, size_t) except -1 nogil
    int stream_break(int fd) except -1

cdef extern from "c/pages.h":
    struct pages:
        pass
    bint pages_held(const pages*) noexcept nogil
    void pages_close(pages*) noexcept nogil
    bint pages_open(pages*) noexcept nogil
    Py_ssize_t pages_take(pages*, stream*, size_t) except -1 nogil
    Py_ssize_t pages_read(pages*, uint8_t*) except -1 nogil
    Py_ssize_t pages_store(
        pages*, int fd, size_t, int64_t offset, size_t cluster, bint allocate, uint8_t*) except -1 nogil

cdef extern from "c/behind.h":
    struct behind:
        pass
    struct behind_slot:
        pages pages
        uint8_t* own
        int fd
        int64_t offset
        bint allocate
    int behind_init(behind*) except -1
    void behind_free(behind*) noexcept nogil
    int behind_put(behind*, pages*, uint8_t** own, int fd, int64_t offset, bint allocate) except -1 nogil
    void behind_drain(behind*) noexcept nogil
    void behind_close(behind*) noexcept nogil
    behind_slot* behind_next(behind*, bint was_stored) noexcept nogil
