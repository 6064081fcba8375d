/* SPDX-License-Identifier: GPL-2.0-only */
/* Notes of a copy of the program that explains (lb_profile.explain): the verifier removes all of this from the others. */
#ifndef LB_EXPLAIN_H
#define LB_EXPLAIN_H

/* The service of a packet and the entry that it hits; 0: none. */
static __always_inline void lb_explain_entry(__u16 service, __u64 state)
{
	if (!lb_profile.explain)
		return;
	lb_explained.service = service;
	lb_explained.state = state;
	lb_explained.found = state >> LB_STATE_BACKEND_SHIFT;
}

static __always_inline void lb_explain_goes_on(void)
{
	if (lb_profile.explain)
		lb_explained.goes_on = 1;
}

static __always_inline void lb_explain_recorded(__u16 backend)
{
	if (lb_profile.explain)
		lb_explained.recorded = backend;
}

static __always_inline void lb_explain_ring(__u32 length, __u32 position)
{
	if (!lb_profile.explain)
		return;
	lb_explained.ring_length = length;
	lb_explained.ring_position = position;
}

static __always_inline void lb_explain_least(__u16 backend)
{
	if (lb_profile.explain)
		lb_explained.least = backend;
}

static __always_inline void lb_explain_refusal(__u16 backend, __u16 reason)
{
	__u32 at;

	if (!lb_profile.explain)
		return;
	at = lb_explained.refusals;
	if (at >= sizeof(lb_explained.refusal) / sizeof(lb_explained.refusal[0]))
		return;
	lb_explained.refusal[at].backend = backend;
	lb_explained.refusal[at].reason = reason;
	lb_explained.refusals = at + 1;
}

static __always_inline void lb_explain_choice(__u16 backend, int no_slot)
{
	lb_explained.chosen = backend;
	lb_explained.no_slot = no_slot;
}

static __always_inline void lb_explain_end(__u32 reason, __u32 out_ifindex)
{
	lb_explained.reason = reason;
	lb_explained.out_ifindex = out_ifindex;
}

static __always_inline void lb_explain_fib(void)
{
	if (lb_profile.explain)
		lb_explained.by_fib = 1;
}

#endif
