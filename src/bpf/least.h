/* SPDX-License-Identifier: GPL-2.0-only */
/* Least connections: the backend with the least load for its weight; load is the number of live connections.
 *
 * Exact over the members of a service, if it has a list of them (up to LB_LEAST_EXACT); equals take turns in the order of
 * the ring, which is that of weighted round robin. Else the less loaded of two slots of the ring, the next one and one by
 * chance: O(1), and within a few connections of the least (Mitzenmacher 2001).
 */
#ifndef LB_LEAST_H
#define LB_LEAST_H

#define LB_LEAST_PICKS 2
#define LB_LEAST_NONE (1ULL << 40)	/* more connections than any table has */

struct lb_least {
	__u64 live;	/* connections of the best so far */
	__u32 offset;	/* where the slots to look at begin, in lines */
	__u32 length;	/* of the ring */
	__u32 position;	/* on the ring */
	__u16 best;	/* its index; 0: none yet */
	__u16 weight;	/* its weight */
	__u16 ties;	/* how many are as good */
	__u16 service;
	__u32 reserved;
};

static __always_inline __u32 lb_random(void)
{
	if (lb_profile.test_clock)
		return LB_READ_ONCE(lb_test_random);
	return bpf_get_prandom_u32();
}

static __always_inline __u32 lb_ring_slot(__u32 offset, __u32 position)
{
	__u32 line = offset + position / LB_SLOTS_PER_LINE;
	struct lb_ring_line *slots = bpf_map_lookup_elem(&rings, &line);

	return slots ? LB_READ_ONCE(slots->backend[position % LB_SLOTS_PER_LINE]) : 0;
}

/* Takes up a candidate that is less loaded than the best so far; `or_equal` takes one that is as good, too. Returns 1 if it
 * was taken. With as few branches as can be: the verifier follows each of them round the loop.
 */
static __always_inline int lb_least_try(struct lb_least *least, __u32 index, int or_equal)
{
	struct lb_backend_load *load = bpf_map_lookup_elem(&backend_loads, &index);
	struct lb_backend *backend = bpf_map_lookup_elem(&backends, &index);
	__u64 mine, best, less, equal;
	__s64 live;

	if (!load || !backend || !lb_backend_takes_new(backend, least->service))
		return 0;
	live = LB_READ_ONCE(load->opened) - LB_READ_ONCE(load->ended);
	live &= ~(live >> 63);	/* below 0 is 0 */
	/* live / weight, compared as fractions. All differences are below 2^63. */
	mine = live * least->weight;
	best = least->live * backend->weight;
	less = (mine - best) >> 63;
	equal = ((mine ^ best) - 1) >> 63;
	LB_HIDE(less);
	LB_HIDE(equal);
	least->ties = (least->ties + equal) * (less ^ 1) + less;
	if (!(less | (equal & or_equal)))
		return 0;
	least->live = live;
	least->weight = backend->weight;
	least->best = index;
	return 1;
}

static long lb_least_member(__u32 member, struct lb_least *least)
{
	lb_least_try(least, lb_ring_slot(least->offset, member), 0);
	return 0;
}

static long lb_least_turn(__u32 turn, struct lb_least *least)
{
	__u32 position = least->position + turn;	/* turn < length: once around at most */

	if (position >= least->length)
		position -= least->length;
	return lb_least_try(least, lb_ring_slot(least->offset, position), 1);
}

static long lb_least_pick(__u32 pick, struct lb_least *least)
{
	__u32 position = pick ? lb_scale(lb_random(), least->length) : least->position;

	lb_least_try(least, lb_ring_slot(least->offset, position), 0);
	return 0;
}

/* The least loaded backend that takes new connections, or 0. `position` is where on the ring it is whose turn. */
__noinline int lb_least_loaded(__u32 service_index, __u32 position)
{
	struct lb_service *service = bpf_map_lookup_elem(&services, &service_index);
	/* Anything is better than this. Not a constant, so that the verifier finds nothing new in the loop's later turns. */
	struct lb_least least = {
		.live = LB_LEAST_NONE + LB_READ_ONCE(lb_opaque_zero),
		.weight = 1,
		.service = service_index,
		.position = position,
	};
	__u64 ring, members;
	__u32 count;

	if (!service)
		return 0;
	ring = LB_READ_ONCE(service->ring);
	members = LB_READ_ONCE(service->members);
	least.length = (ring >> LB_RING_LENGTH_SHIFT) & 0xffffff;
	count = (members >> LB_RING_LENGTH_SHIFT) & 0xffffff;
	least.offset = (ring >> LB_RING_OFFSET_SHIFT) & 0xffffff;
	if (!count) {
		bpf_loop(LB_LEAST_PICKS, lb_least_pick, &least, 0);
		return least.best;
	}
	least.offset = (members >> LB_RING_OFFSET_SHIFT) & 0xffffff;
	bpf_loop(count < LB_LEAST_EXACT ? count : LB_LEAST_EXACT, lb_least_member, &least, 0);
	least.offset = (ring >> LB_RING_OFFSET_SHIFT) & 0xffffff;
	if (least.ties > 1)
		bpf_loop(least.length < LB_LEAST_WALK ? least.length : LB_LEAST_WALK, lb_least_turn, &least, 0);
	return least.best;
}

#endif
