# SPDX-License-Identifier: GPL-2.0-or-later
cdef extern from "c/fork.h":
    unsigned fork_count
    void fork_watch() noexcept nogil
