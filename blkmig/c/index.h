/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Cython makes a C integer of whatever has an __int__, also of 1.9. Here a number is what has an __index__: a float is a
 * TypeError.
 */
#ifndef BLKMIG_INDEX_H
#define BLKMIG_INDEX_H

#define nb_int nb_index

#endif
