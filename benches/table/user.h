/* SPDX-License-Identifier: GPL-2.0-only */
/* What src/bpf/conn.h finds around it in the kernel, for user space: the helpers that it calls and the tables and settings of
 * maps.h that it names. Everything else is the program's own headers.
 */
#ifndef TABLE_USER_H
#define TABLE_USER_H

#include "vmlinux.h"

#include <stddef.h>

#define __always_inline inline __attribute__((always_inline))
#define __noinline static __attribute__((noinline))
#define bpf_ntohs(x) __builtin_bswap16(x)
#define bpf_htons(x) __builtin_bswap16(x)
#define bpf_htonl(x) __builtin_bswap32(x)

#include "lb_types.h"
#include "lb_hash.h"
#include "access.h"

struct user_array {
	char *rows;
	__u32 row_size;
	__u32 max_entries;
};

static struct user_array connections = { .row_size = sizeof(struct lb_bucket) };
static struct user_array backend_loads = { .row_size = sizeof(struct lb_backend_load) };

static struct {
	__u8 test_clock;
} lb_profile;
static struct lb_settings lb_settings;
static __u32 lb_test_now;
static __u32 lb_opaque_zero;
static struct lb_watch lb_watch;

#define LB_CAN_BE_WATCHED 0
static __u64 user_jiffies;

static __always_inline void *bpf_map_lookup_elem(struct user_array *array, const __u32 *index)
{
	return *index < array->max_entries ? array->rows + (__u64)*index * array->row_size : NULL;
}

static __always_inline __u64 bpf_jiffies64(void)
{
	return user_jiffies;
}

#include "parse.h"

/* Nobody asks how many gave way. */
static __always_inline int lb_event_evicted(__u32 backend, __u32 expired)
{
	(void)backend, (void)expired;
	return 0;
}

#include "conn.h"

/* Follows counted and sticky connections; there are none here. */
int lb_conn_follow(__u64 key, __u64 from, __u64 to)
{
	(void)key, (void)from, (void)to;
	__builtin_trap();
}

#endif
