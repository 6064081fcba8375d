/* SPDX-License-Identifier: GPL-2.0-only */
/* Loads and stores of single words that others change meanwhile: neither torn, repeated nor left out by the compiler. */
#ifndef LB_ACCESS_H
#define LB_ACCESS_H

#define LB_READ_ONCE(x) (*(volatile __typeof__(x) *)&(x))
#define LB_WRITE_ONCE(x, value) (*(volatile __typeof__(x) *)&(x) = (value))

#endif
