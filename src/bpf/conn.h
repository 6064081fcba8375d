/* SPDX-License-Identifier: GPL-2.0-only */
/* The connection table: buckets of one cache line, two candidate buckets for a key, and a state word for each entry
 * that is the only authority; the key beside it is a label.
 *
 * Whoever changes an entry's owner, phase or life makes one compare-and-swap of the state word, from exactly the value
 * the decision was made on. The key is written only by the one who swapped CLAIMED in. A hit stores only the time, which
 * is a field of its own: the worst that a store into a slot just given away does is to make its new owner look younger.
 * Stores become visible in program order on x86; other machines need release and acquire at the marked places.
 */
#ifndef LB_CONN_H
#define LB_CONN_H

/* Keeps the compiler from turning masks back into branches: rating eight slots with branches costs the verifier 285,000
 * instructions instead of a few thousand.
 */
#define LB_HIDE(value) asm volatile("" : "+r"(value))

#define LB_STATE_BACKEND (0xffffULL << LB_STATE_BACKEND_SHIFT)
#define LB_STATE_COUNTED (1ULL << LB_STATE_COUNTED_SHIFT)
#define LB_STATE_CLIENT_CLOSED (1ULL << LB_STATE_CLIENT_CLOSED_SHIFT)
#define LB_STATE_BACKEND_CLOSED (1ULL << LB_STATE_BACKEND_CLOSED_SHIFT)
#define LB_STATE_EXPIRED (1ULL << LB_STATE_EXPIRED_SHIFT)
#define LB_STATE_UDP (1ULL << LB_STATE_UDP_SHIFT)
#define LB_STATE_PHASE (7ULL << LB_STATE_PHASE_SHIFT)
#define LB_STATE_TAG (0xffULL << LB_STATE_TAG_SHIFT)
#define LB_STATE_NEXTHOP (0xffffULL << LB_STATE_NEXTHOP_SHIFT)
#define LB_STATE_SEEN (0xffffULL << LB_STATE_SEEN_SHIFT)

#define LB_UPDATE_TRIES 3
#define LB_INSERT_TRIES 3

static __always_inline __u16 lb_state_backend(__u64 state)
{
	return state >> LB_STATE_BACKEND_SHIFT;
}

static __always_inline __u32 lb_state_phase(__u64 state)
{
	return (state >> LB_STATE_PHASE_SHIFT) & 7;
}

/* What keys are looked up for: neither FREE nor CLAIMED. */
static __always_inline int lb_state_is_entry(__u64 state)
{
	return lb_state_phase(state) - LB_PHASE_UNCONFIRMED <= LB_PHASE_CLOSED - LB_PHASE_UNCONFIRMED;
}

/* What loads count: neither closed nor found over its timeout by a sweep. */
static __always_inline int lb_state_is_live(__u64 state)
{
	return lb_state_phase(state) - LB_PHASE_UNCONFIRMED <= LB_PHASE_REVIVING - LB_PHASE_UNCONFIRMED &&
	       !(state & LB_STATE_EXPIRED);
}

/* The counted bit as it should be, by the flags of the entry's backend: set for a live entry of a backend that is counted,
 * cleared when the entry ends. A live one that was counted stays so, whatever became of the service's scheduler.
 */
static __always_inline __u64 lb_state_count(__u64 state, __u8 backend_flags)
{
	if (!(backend_flags & LB_BACKEND_COUNTED) && !(state & LB_STATE_COUNTED))
		return state;
	return lb_state_is_live(state) ? state | LB_STATE_COUNTED : state & ~LB_STATE_COUNTED;
}

static __always_inline __u8 lb_state_tag(__u64 state)
{
	return state >> LB_STATE_TAG_SHIFT;
}

static __always_inline __u16 lb_state_nexthop(__u64 state)
{
	return state >> LB_STATE_NEXTHOP_SHIFT;
}

static __always_inline __u16 lb_state_seen(__u64 state)
{
	return state >> LB_STATE_SEEN_SHIFT;
}

static __always_inline __u64 lb_state_in_phase(__u64 state, __u64 phase)
{
	return (state & ~LB_STATE_PHASE) | phase << LB_STATE_PHASE_SHIFT;
}

static __always_inline __u64 lb_state_seen_at(__u64 state, __u16 now)
{
	return (state & ~LB_STATE_SEEN) | (__u64)now << LB_STATE_SEEN_SHIFT;
}

static __always_inline __u64 lb_state_via(__u64 state, __u16 nexthop)
{
	return (state & ~LB_STATE_NEXTHOP) | (__u64)nexthop << LB_STATE_NEXTHOP_SHIFT;
}

/* The way to the client is not known yet: the first reply looks for it, which a packet of a flood does not get. */
static __always_inline __u64 lb_state_new(__u16 backend, __u8 tag, __u8 proto, __u16 now)
{
	return (__u64)backend << LB_STATE_BACKEND_SHIFT | (__u64)LB_PHASE_UNCONFIRMED << LB_STATE_PHASE_SHIFT |
	       (proto == IPPROTO_UDP ? LB_STATE_UDP : 0) | (__u64)tag << LB_STATE_TAG_SHIFT |
	       (__u64)now << LB_STATE_SEEN_SHIFT;
}

/* The clock of client affinity, which must not wrap within months; the table's is its low half. */
static __always_inline __u32 lb_now_long(void)
{
	if (lb_profile.test_clock)
		return LB_READ_ONCE(lb_test_now);
	return bpf_jiffies64() >> lb_settings.clock_shift;
}

static __always_inline __u16 lb_now(void)
{
	return lb_now_long();
}

static __always_inline __u64 lb_conn_key(__be32 client, __be16 port, __u16 service)
{
	return client | (__u64)port << 32 | (__u64)service << 48;
}

/* The two candidate buckets of a key. */
struct lb_conn_ref {
	struct lb_bucket *first;
	struct lb_bucket *second;
	__u64 key;
	__u8 tag;
};

static __always_inline __u64 lb_conn_hash(__u64 key)
{
	return lb_hash(key, lb_settings.key[0], lb_settings.key[1]);
}

static __always_inline int lb_conn_refer_hashed(struct lb_conn_ref *ref, __u64 key, __u64 hash)
{
	__u32 first = lb_scale(hash >> 32, lb_settings.buckets);
	__u32 second = lb_scale(hash, lb_settings.buckets);

	ref->key = key;
	ref->tag = hash >> LB_TAG_SHIFT;
	ref->first = bpf_map_lookup_elem(&connections, &first);
	ref->second = bpf_map_lookup_elem(&connections, &second);
	return ref->first && ref->second ? 0 : -1;
}

static __always_inline int lb_conn_refer(struct lb_conn_ref *ref, __u64 key)
{
	return lb_conn_refer_hashed(ref, key, lb_conn_hash(key));
}

static __always_inline int lb_conn_matches(struct lb_conn *conn, __u64 key, __u8 tag, __u64 *state)
{
	__u64 now;

	if (LB_READ_ONCE(conn->key) != key)
		return 0;
	now = LB_READ_ONCE(conn->state);	/* acquire: after the first look at the key */
	if (LB_READ_ONCE(conn->key) != key)	/* acquire: after the state */
		return 0;
	if (lb_state_tag(now) != tag || !lb_state_is_entry(now))
		return 0;
	*state = now;
	return 1;
}

/* Once a slot is found, the verifier is made to forget which: what follows is then checked for any slot at once, not for
 * each of eight on its own.
 */
static __always_inline struct lb_conn *lb_conn_in(struct lb_bucket *bucket, __u64 key, __u8 tag, __u64 *state)
{
#pragma unroll
	for (int i = 0; i < LB_CONNS_PER_BUCKET; i++) {
		struct lb_conn *conn;

		if (!lb_conn_matches(&bucket->conn[i], key, tag, state))
			continue;
		conn = &bucket->conn[(i + LB_READ_ONCE(lb_opaque_zero)) & (LB_CONNS_PER_BUCKET - 1)];
		LB_HIDE(conn);
		return conn;
	}
	return NULL;
}

/* The entry of a key, and its state as of one instant. */
static __always_inline struct lb_conn *lb_conn_find(struct lb_conn_ref *ref, __u64 *state)
{
	struct lb_conn *conn = lb_conn_in(ref->first, ref->key, ref->tag, state);

	return conn ? conn : lb_conn_in(ref->second, ref->key, ref->tag, state);
}

/* Brings loads in line with a swap; only its winner calls this. After the swap, so that a swap that fails costs nothing:
 * a load may be off, below 0 too, for as long as this takes.
 */
static __always_inline void lb_load_follow(__u64 from, __u64 to)
{
	struct lb_backend_load *load;
	__u32 index;

	if (!((from | to) & LB_STATE_COUNTED) || !((from ^ to) & (LB_STATE_COUNTED | LB_STATE_BACKEND)))
		return;
	if (from & LB_STATE_COUNTED) {
		index = lb_state_backend(from);
		load = bpf_map_lookup_elem(&backend_loads, &index);
		if (load)
			__sync_fetch_and_add(&load->ended, 1);
	}
	if (to & LB_STATE_COUNTED) {
		index = lb_state_backend(to);
		load = bpf_map_lookup_elem(&backend_loads, &index);
		if (load)
			__sync_fetch_and_add(&load->opened, 1);
	}
}

static __always_inline int lb_conn_swap(struct lb_conn *conn, __u64 from, __u64 to)
{
	if (__sync_val_compare_and_swap(&conn->state, from, to) != from)
		return 0;
	lb_load_follow(from, to);
	return 1;
}

/* --- rating of slots, without branches --- */

#define LB_RANK_SHIFT 18
#define LB_RANK_FREE 4
#define LB_RANK_EXPIRED 3
#define LB_RANK_CLOSED 2
#define LB_RANK_UNCONFIRMED 1
#define LB_RANK_LIVE 0

/* A multiplication rather than a mask: verifiers from 6.18 on follow both values of a mask. `condition` is 0 or 1. */
static __always_inline __u32 lb_if(__u32 condition, __u32 then, __u32 otherwise)
{
	LB_HIDE(condition);
	return otherwise ^ (then ^ otherwise) * condition;
}

static __always_inline __u32 lb_equal(__u32 a, __u32 b)
{
	__u32 difference = (a ^ b) - 1;

	LB_HIDE(difference);
	return difference >> 31;
}

static __always_inline __u32 lb_below(__u32 a, __u32 b)
{
	__u32 difference = a - b;

	LB_HIDE(difference);
	return difference >> 31;
}

static __always_inline __u32 lb_max(__u32 a, __u32 b)
{
	return lb_if(lb_below(a, b), b, a);
}

/* How willingly a slot is given away, rank << 18 | age << 2: free, expired, closed, then the oldest unconfirmed; 0 for a
 * live confirmed entry, and for one that is just being written.
 */
static __always_inline __u32 lb_conn_rate(__u64 state, __u16 now)
{
	__u32 phase = lb_state_phase(state);
	__u32 timeout = lb_settings.timeout[phase | ((state >> LB_STATE_UDP_SHIFT) & 1) * LB_TIMEOUT_UDP];
	__u32 age = (__u16)(now - lb_state_seen(state));
	__u32 expired, rank;

	age = lb_if(lb_below(age, LB_AGE_LIMIT), age, 0);
	expired = ((state >> LB_STATE_EXPIRED_SHIFT) & 1) | lb_below(timeout, age);
	rank = lb_if(lb_equal(phase, LB_PHASE_UNCONFIRMED) | lb_equal(phase, LB_PHASE_ANSWERED), LB_RANK_UNCONFIRMED,
		     LB_RANK_LIVE);
	rank = lb_if(lb_equal(phase, LB_PHASE_CLOSED), LB_RANK_CLOSED, rank);
	rank = lb_if(expired, LB_RANK_EXPIRED, rank);
	rank = lb_if(lb_equal(phase, LB_PHASE_FREE), LB_RANK_FREE, rank);
	return rank << LB_RANK_SHIFT | lb_if(lb_below(LB_RANK_LIVE, rank), age << 2, 0);
}

struct lb_rating {
	__u32 spare;		/* slots that nobody's live connection holds */
	__u32 unconfirmed;	/* live ones */
	__u32 available;	/* best rating | salted slot of those that may go without asking; 0: none */
	__u32 oldest;		/* slots that are not live confirmed << 21 | rating | salted slot of the oldest live
				 * unconfirmed one; 0: none
				 */
};

/* `salt` decides among slots of the same rating: the newest of a burst is not always the one to go. */
static __always_inline void lb_bucket_rate(struct lb_bucket *bucket, __u16 now, __u32 salt, struct lb_rating *rating)
{
	rating->spare = rating->unconfirmed = rating->available = rating->oldest = 0;
#pragma unroll
	for (__u32 i = 0; i < LB_CONNS_PER_BUCKET; i++) {
		__u32 rate = lb_conn_rate(LB_READ_ONCE(bucket->conn[i].state), now);
		__u32 rank = rate >> LB_RANK_SHIFT;
		__u32 unconfirmed = lb_equal(rank, LB_RANK_UNCONFIRMED);

		rating->spare += lb_below(LB_RANK_UNCONFIRMED, rank);
		rating->unconfirmed += unconfirmed;
		rating->available = lb_max(rating->available,
					   lb_if(lb_below(LB_RANK_UNCONFIRMED, rank), rate | (i ^ salt), 0));
		rating->oldest = lb_max(rating->oldest, lb_if(unconfirmed, rate | (i ^ salt), 0));
	}
	/* Unconfirmed entries hold at most half of a bucket: a flood of them finds no more room than that. */
	rating->available = lb_if(lb_below(rating->unconfirmed, LB_CONNS_PER_BUCKET / 2), rating->available, 0);
	rating->oldest |= lb_if(lb_equal(rating->oldest, 0), 0, (rating->spare + rating->unconfirmed) << 21);
}

/* The slot for a new unconfirmed entry, or NULL. */
static __always_inline struct lb_conn *lb_conn_victim(struct lb_conn_ref *ref, __u16 now)
{
	struct lb_rating first, second;
	__u32 one, two, other, slot, salt = ref->tag & (LB_CONNS_PER_BUCKET - 1);
	struct lb_bucket *bucket;

	lb_bucket_rate(ref->first, now, salt, &first);
	one = first.available;
	/* The first bucket while fewer than two of its slots hold live connections, whatever is in the second; else the one
	 * that holds fewer. What has ended counts as room: after a while no slot is free any more, and counting these alone
	 * would choose between the buckets by chance.
	 */
	if (first.spare >= LB_CONNS_PER_BUCKET - 1)
		return &ref->first->conn[(one ^ salt) & (LB_CONNS_PER_BUCKET - 1)];
	lb_bucket_rate(ref->second, now, salt, &second);
	two = second.available;
	if (one | two) {
		one = lb_if(lb_equal(one, 0), 0, first.spare << 21 | one);
		two = lb_if(lb_equal(two, 0), 0, second.spare << 21 | two);
		other = lb_below(one, two);
		/* A full first bucket that may not be used leaves the second. */
		other |= lb_equal(one, 0);
	} else {
		/* Where fewer are confirmed: what is confirmed during a flood must not have found its bucket by chance alone,
		 * or soon both buckets of some new connections are full of confirmed ones.
		 */
		one = first.oldest;
		two = second.oldest;
		other = lb_below(one, two);
	}
	slot = lb_if(other, two, one);
	if (!slot)
		return NULL;
	bucket = other ? ref->second : ref->first;
	slot = (slot ^ salt) & (LB_CONNS_PER_BUCKET - 1);
	return &bucket->conn[slot];
}

/* Counts the end of an entry that gave its slot away, if it has not ended before. */
static __always_inline void lb_conn_gave_way(__u64 old, __u32 rank)
{
	if (lb_state_is_live(old))
		lb_event_evicted(lb_state_backend(old), rank == LB_RANK_EXPIRED);
}

/* Puts a new entry into the table. Returns LB_CONTINUE or LB_DROP_TABLE_FULL. */
static __always_inline int lb_conn_insert(struct lb_conn_ref *ref, __u64 state, __u16 now)
{
	const __u64 claimed = (__u64)LB_PHASE_CLAIMED << LB_STATE_PHASE_SHIFT | (__u64)now << LB_STATE_SEEN_SHIFT;

	for (int try = 0; try < LB_INSERT_TRIES; try++) {
		struct lb_conn *conn = lb_conn_victim(ref, now);
		__u32 rank;
		__u64 old;

		if (!conn)
			return LB_DROP_TABLE_FULL;
		old = LB_READ_ONCE(conn->state);
		rank = lb_conn_rate(old, now) >> LB_RANK_SHIFT;
		/* It may have come to life since it was rated. */
		if (!rank || !lb_conn_swap(conn, old, claimed))
			continue;
		lb_conn_gave_way(old, rank);
		LB_WRITE_ONCE(conn->key, ref->key);
		/* release: after the key; a swap, because a claim that was held up for seconds may have been taken over */
		if (lb_conn_swap(conn, claimed, state))
			return LB_CONTINUE;
	}
	return LB_DROP_TABLE_FULL;
}

/* --- life of an entry --- */

/* The state after a packet of the client. Closing is not prolonged by the client: anybody can send in its name. */
static __always_inline __u64 lb_state_after_client(__u64 state, __u8 proto, __u8 flags, __u16 now)
{
	__u32 phase = lb_state_phase(state);
	__u64 fresh = lb_state_seen_at(state & ~LB_STATE_EXPIRED, now);

	if (proto == IPPROTO_UDP)
		return phase == LB_PHASE_ANSWERED ? lb_state_in_phase(fresh, LB_PHASE_ESTABLISHED) : fresh;
	/* Only an ACK confirms: one that is not the real client's makes the backend send a RST, which ends the entry. And
	 * nothing that ends an unconfirmed connection may protect it from eviction as closing does.
	 */
	if (phase == LB_PHASE_UNCONFIRMED ||
	    (phase == LB_PHASE_ANSWERED && (flags & (LB_TCP_SYN | LB_TCP_RST | LB_TCP_ACK)) != LB_TCP_ACK))
		return fresh;
	if (phase == LB_PHASE_CLOSED || flags & LB_TCP_SYN)
		return phase == LB_PHASE_ESTABLISHED ? fresh : state;

	if (flags & LB_TCP_RST)
		return phase == LB_PHASE_ESTABLISHED ? lb_state_in_phase(fresh, LB_PHASE_CLOSING) : state;
	if (flags & LB_TCP_FIN) {
		if (state & LB_STATE_BACKEND_CLOSED)
			return lb_state_in_phase(fresh | LB_STATE_CLIENT_CLOSED, LB_PHASE_CLOSED);
		if (phase == LB_PHASE_CLOSING || phase == LB_PHASE_REVIVING)
			return state | LB_STATE_CLIENT_CLOSED;
		return lb_state_in_phase(fresh | LB_STATE_CLIENT_CLOSED, LB_PHASE_CLOSING);
	}
	if (phase == LB_PHASE_CLOSING || phase == LB_PHASE_REVIVING)
		return lb_state_in_phase(state, LB_PHASE_REVIVING);
	return lb_state_in_phase(fresh, LB_PHASE_ESTABLISHED);
}

/* The state after a packet of the backend, whose word counts: its RST ends the connection at once. */
static __always_inline __u64 lb_state_after_backend(__u64 state, __u8 proto, __u8 flags, __u16 now)
{
	__u32 phase = lb_state_phase(state);
	__u64 fresh = lb_state_seen_at(state & ~LB_STATE_EXPIRED, now);

	if (phase == LB_PHASE_CLOSED)
		return state;
	if (proto == IPPROTO_TCP) {
		if (flags & LB_TCP_RST)
			return lb_state_in_phase(fresh, LB_PHASE_CLOSED);
		/* A new connection of the same tuple owes nothing to the FINs of the old one. */
		if (flags & LB_TCP_SYN)
			fresh &= ~(LB_STATE_CLIENT_CLOSED | LB_STATE_BACKEND_CLOSED);
		if (flags & LB_TCP_FIN) {
			fresh |= LB_STATE_BACKEND_CLOSED;
			if (fresh & LB_STATE_CLIENT_CLOSED)
				return lb_state_in_phase(fresh, LB_PHASE_CLOSED);
			if (phase >= LB_PHASE_ESTABLISHED)
				return lb_state_in_phase(fresh, LB_PHASE_CLOSING);
		}
	}
	if (phase == LB_PHASE_UNCONFIRMED)
		return lb_state_in_phase(fresh, LB_PHASE_ANSWERED);
	/* The FINs were somebody else's, or of half a connection: none of them is to help in closing it later. */
	if (phase == LB_PHASE_REVIVING)
		return lb_state_in_phase(fresh & ~(LB_STATE_CLIENT_CLOSED | LB_STATE_BACKEND_CLOSED),
					 LB_PHASE_ESTABLISHED);
	return fresh;
}

/* Whether the client's packet of this swap confirmed the connection. (A RST of the backend may be the first after its
 * answer: then the client's FIN is not noted.)
 */
static __always_inline int lb_is_confirmed_by(__u64 from, __u64 to)
{
	__u32 phase = lb_state_phase(to);

	return lb_state_phase(from) == LB_PHASE_ANSWERED && phase > LB_PHASE_ANSWERED &&
	       (phase != LB_PHASE_CLOSED || to & LB_STATE_CLIENT_CLOSED);
}

/* What a packet of these flags that made this swap did to the connection (enum lb_event_kind). A function that the verifier
 * checks once, on its own.
 */
__noinline int lb_conn_events(__u64 from, __u64 to, __u32 tcp_flags)
{
	__u8 events = from & ~to & LB_STATE_EXPIRED ? LB_EVENT_REVIVED : 0;

	if (lb_is_confirmed_by(from, to))
		events |= LB_EVENT_CONFIRMED;
	if (lb_state_phase(from) != LB_PHASE_CLOSED && lb_state_phase(to) == LB_PHASE_CLOSED)
		events |= tcp_flags & LB_TCP_RST ? LB_EVENT_RESET : LB_EVENT_CLOSED;
	return events;
}

/* The load and the client's record follow a packet that changed more than the time (affinity.h). */
int lb_conn_follow(__u64 key, __u64 from, __u64 to);

/* Brings an entry from the state it was found in to the one after this packet: a plain store if only the time differs,
 * else a compare-and-swap, tried again on what another CPU made of the same connection meanwhile. `backend` is the
 * entry's; `nexthop` towards the client is noted if it is not 0.
 */
static __always_inline void lb_conn_update(struct lb_conn *conn, __u64 key, __u64 state, struct lb_packet *pkt,
					   const struct lb_backend *backend, __u16 nexthop)
{
	for (int try = 0; try < LB_UPDATE_TRIES; try++) {
		__u64 want = pkt->to_client ? lb_state_after_backend(state, pkt->proto, pkt->tcp_flags, pkt->now) :
					      lb_state_after_client(state, pkt->proto, pkt->tcp_flags, pkt->now);
		__u64 seen;

		/* The flags are read anew each time: the verifier's stack is too small to keep them. */
		want = lb_state_count(want, LB_READ_ONCE(backend->flags));
		if (nexthop)
			want = lb_state_via(want, nexthop);
		if (!((want ^ state) & ~LB_STATE_SEEN)) {
			if (want != state)
				LB_WRITE_ONCE(((__u16 *)&conn->state)[LB_STATE_SEEN_SHIFT / 16], pkt->now);
			return;
		}
		seen = __sync_val_compare_and_swap(&conn->state, state, want);
		if (seen == state) {
			lb_packet_did(pkt, lb_conn_events(state, want, pkt->tcp_flags));
			if ((want | state) & LB_STATE_COUNTED || LB_READ_ONCE(backend->flags) & LB_BACKEND_STICKY)
				lb_conn_follow(key, state, want);
			return;
		}
		if (LB_READ_ONCE(conn->key) != key || (seen ^ state) & (LB_STATE_BACKEND | LB_STATE_TAG) ||
		    !lb_state_is_entry(seen))
			return;
		state = seen;
	}
}

#endif
