/* SPDX-License-Identifier: GPL-2.0-only */
/* What becomes of the connections of a backend, and how long its handshakes take: counted where it happens, which is once
 * or twice in a connection's life.
 */
#ifndef LB_EVENTS_H
#define LB_EVENTS_H

#define LB_NSEC_PER_USEC 1000
/* A handshake that took longer was begun by somebody else: the row's tag matched by chance. */
#define LB_HANDSHAKE_LIMIT (128 * 1000 * 1000)

static __always_inline void lb_event_add(__u64 *counter)
{
	__sync_fetch_and_add(counter, 1);
}

/* An entry of this backend gives its slot away: it had been over its timeout, or not. */
__noinline int lb_event_evicted(__u32 backend, __u32 expired)
{
	struct lb_backend_events *row = bpf_map_lookup_elem(&backend_events, &backend);

	if (row)
		lb_event_add(expired ? &row->expired : &row->evicted);
	return 0;
}

/* An entry of this backend was found over its timeout. */
static __always_inline void lb_event_expired(__u32 backend)
{
	struct lb_backend_events *row = bpf_map_lookup_elem(&backend_events, &backend);

	if (row)
		lb_event_add(&row->expired);
}

/* A connection of this backend goes on with another. */
__noinline int lb_event_moved(__u32 backend)
{
	struct lb_backend_events *row = bpf_map_lookup_elem(&backend_events, &backend);

	if (row)
		lb_event_add(&row->moved);
	return 0;
}

/* What one packet did to its connection. A function that the verifier checks once, on its own. */
__noinline int lb_event_note(__u32 backend, __u32 events)
{
	struct lb_backend_counters *counters = bpf_map_lookup_elem(&backend_counters, &backend);
	struct lb_backend_events *row = bpf_map_lookup_elem(&backend_events, &backend);

	if (!row || !counters)
		return 0;
	if (events & LB_EVENT_OPENED)
		counters->connections++;
	if (events & LB_EVENT_CLOSED)
		lb_event_add(&row->closed);
	if (events & LB_EVENT_RESET)
		lb_event_add(&row->reset);
	if (events & LB_EVENT_REVIVED)
		lb_event_add(&row->revived);
	if (events & LB_EVENT_SYN_RETRANSMIT)
		lb_event_add(&row->syn_retransmits);
	if (events & LB_EVENT_RST)
		lb_event_add(&row->rsts);
	return 0;
}

/* --- handshakes --- */

static __always_inline __u32 lb_micros(void)
{
	if (lb_profile.test_clock)
		return LB_READ_ONCE(lb_test_micros);
	return bpf_ktime_get_ns() / LB_NSEC_PER_USEC;
}

static __always_inline struct lb_handshake *lb_handshake_of(__u64 hash)
{
	__u32 index = (hash ^ hash >> 32) % LB_HANDSHAKES;

	return bpf_map_lookup_elem(&handshakes, &index);
}

static __always_inline __u32 lb_handshake_tag(__u64 hash)
{
	return (hash >> 16) | 1;	/* 0 is an empty row */
}

/* The client's first SYN of a connection whose key has this hash. Of those that are too many the time is not taken: reading it
 * and touching one more line make a SYN half as dear again.
 */
__noinline int lb_handshake_begins(__u64 hash, __u32 backend, __u32 now)
{
	struct lb_backend_counters *counters = bpf_map_lookup_elem(&backend_counters, &backend);
	struct lb_handshake *row = lb_handshake_of(hash);

	if (!row || !counters)
		return 0;
	if (counters->timed >> 32 != now)
		counters->timed = (__u64)now << 32;
	if ((__u32)counters->timed >= LB_HANDSHAKES_PER_UNIT)
		return 0;
	counters->timed++;
	LB_WRITE_ONCE(row->word, (__u64)lb_handshake_tag(hash) << 32 | lb_micros());
	return 0;
}

static __always_inline __u32 lb_histogram_bucket(__u32 micros)
{
	__u32 bucket = 0;

#pragma unroll
	for (int i = 0; i < LB_HISTOGRAM_BUCKETS - 1; i++)
		bucket += micros > (__u32)LB_HISTOGRAM_FIRST << i;
	return bucket;
}

/* The backend's SYN-ACK. The row is emptied: one sent again is not the answer to that SYN. */
__noinline int lb_handshake_ends(__u64 hash, __u32 backend)
{
	struct lb_backend_events *events = bpf_map_lookup_elem(&backend_events, &backend);
	struct lb_handshake *row = lb_handshake_of(hash);
	__u32 micros, bucket;
	__u64 word;

	if (!row || !events)
		return 0;
	word = LB_READ_ONCE(row->word);
	if (word >> 32 != lb_handshake_tag(hash))
		return 0;
	LB_WRITE_ONCE(row->word, 0);
	micros = lb_micros() - (__u32)word;
	if (micros > LB_HANDSHAKE_LIMIT)
		return 0;
	bucket = lb_histogram_bucket(micros) & (LB_HISTOGRAM_BUCKETS - 1);
	lb_event_add(&events->handshake.bucket[bucket]);
	__sync_fetch_and_add(&events->handshake.microseconds, micros);
	return 0;
}

#endif
