// SPDX-License-Identifier: GPL-2.0-only
/* Hammers the connection table of src/bpf/conn.h from several CPUs at once; tests/conn_hammer.rs runs it.
 *
 * What an entry says is a function of its key, so a state that is returned for another key shows. Entries that are known
 * to be confirmed must be found, whatever the others do: the pinned ones from the start to the end, the sessions, which
 * one worker opens and ends again and again, in between. What is counted of a backend is compared with the entries at the
 * end, by the test: some of the backends are counted, and some are now and then; and whatever came to a backend has ended
 * in one way or lives.
 */
#include "vmlinux.h"
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "lb_types.h"
#include "lb_hash.h"
#include "access.h"
#include "maps.h"
#include "parse.h"
#include "service.h"
#include "events.h"
#include "conn.h"
#include "affinity.h"

char LICENSE[] SEC("license") = "GPL";

/* Few enough that confirmed entries leave room in a table of four buckets. */
#define HAMMER_PINNED 4
#define HAMMER_WORKERS 2
#define HAMMER_SESSIONS 2	/* of each worker */
#define HAMMER_COMMON 32

enum hammer_keys_layout {
	HAMMER_KEY_PINNED = 0,
	HAMMER_KEY_SESSION = HAMMER_KEY_PINNED + HAMMER_PINNED,
	HAMMER_KEY_COMMON = HAMMER_KEY_SESSION + HAMMER_WORKERS * HAMMER_SESSIONS,
	HAMMER_KEYS = HAMMER_KEY_COMMON + HAMMER_COMMON,
};

/* All keys share four tags, else the tag would hide that the key is not looked at again. One of them is 0, which is also
 * a claimed slot's.
 */
#define HAMMER_TAG_MASK 0x3f
#define HAMMER_TAG 0
#define HAMMER_KEY_TRIES 65536
#define HAMMER_BACKENDS 1000

/* Iterations of a run, during which nothing else gets the CPU; a multiple of every turn's length. */
#define HAMMER_ITERATIONS 512
#define HAMMER_STEP 8	/* iterations to a step of the clock */

/* Mostly only so many of the common keys are in use, and others expire meanwhile. Every 2^7 steps the window moves. */
#define HAMMER_WINDOW 10
#define HAMMER_WINDOW_SHIFT 7
#define HAMMER_WINDOW_MOVE 4

/* Whose rows of hammer_epochs, a cache line apart. Idle is 0, as at first. */
#define HAMMER_EPOCH_STRIDE 8
#define HAMMER_EPOCH_SWEEPER (HAMMER_WORKERS * HAMMER_EPOCH_STRIDE)
#define HAMMER_EPOCH_CLOCK (HAMMER_EPOCH_SWEEPER + HAMMER_EPOCH_STRIDE)
#define HAMMER_EPOCHS (HAMMER_EPOCH_CLOCK + HAMMER_EPOCH_STRIDE)
#define HAMMER_EPOCH_RUNNING 0x10000	/* | the clock as this one has read it */

/* A worker's row. What is before `random` is reported; the test reads the names from the BTF. */
struct hammer_worker {
	__u64 operations;
	__u64 hits;
	__u64 misses;
	__u64 expired_hits;
	__u64 inserts;
	__u64 table_full;
	__u64 replaced;
	__u64 deleted;
	__u64 overtaken;	/* swaps that failed: another CPU was faster */
	__u64 clock_steps;
	__u64 sessions_confirmed;
	__u64 sessions_ended;
	/* Faults: */
	__u64 wrong_pairing;	/* a state was returned that is not this key's */
	__u64 lost_pinned;
	__u64 lost_session;
	__u64 expired_live;	/* a confirmed entry was marked as expired within its timeout */
	__u64 not_set_up;
	/* Not counts: */
	__u64 random;
	__u64 confirmed[HAMMER_SESSIONS];	/* its sessions that must be found */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, HAMMER_WORKERS);
	__type(key, __u32);
	__type(value, struct hammer_worker);
} hammer_workers SEC(".maps");

/* How far each participant's clock is. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, HAMMER_EPOCHS);
	__type(key, __u32);
	__type(value, __u64);
} hammer_epochs SEC(".maps");

/* Live entries of a backend that a worker has deleted, which no packet does. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, HAMMER_BACKENDS + 1);
	__type(key, __u32);
	__type(value, __u64);
} hammer_deleted SEC(".maps");

/* Not on the line of the clock, which is written all the time. */
__u64 hammer_keys[HAMMER_KEYS] __attribute__((aligned(LB_LINE)));

static __always_inline __u64 hammer_mix(__u64 word)
{
	return lb_hash(word, lb_settings.key[2], lb_settings.key[3]);
}

/* --- what an entry says: all of it is the key's, but for the next hop's low bits ---
 *
 * They tell an entry's lives apart. Else a word could come back while the sweep is held up and the clock stands, which
 * real connections cannot do within a unit of the clock. A stamp is the clock | such bits << 16.
 */
#define HAMMER_NEXTHOP_KEY 0xf000

static __always_inline __u8 hammer_proto(__u64 mixed)
{
	return mixed & 1 ? IPPROTO_UDP : IPPROTO_TCP;
}

static __always_inline __u16 hammer_backend(__u64 mixed)
{
	return 1 + lb_scale(mixed >> 32, HAMMER_BACKENDS);
}

static __always_inline __u16 hammer_nexthop(__u64 mixed, __u32 stamp)
{
	return (mixed & HAMMER_NEXTHOP_KEY) | ((stamp >> 16) & ~HAMMER_NEXTHOP_KEY) | 1;
}

static __always_inline int hammer_pairs(__u64 key, __u8 tag, __u64 state)
{
	__u64 mixed = hammer_mix(key);
	__u16 nexthop = lb_state_nexthop(state);

	return lb_state_backend(state) == hammer_backend(mixed) && lb_state_tag(state) == tag &&
	       (!nexthop || !((nexthop ^ mixed) & HAMMER_NEXTHOP_KEY)) &&
	       !(state & LB_STATE_UDP) == (hammer_proto(mixed) == IPPROTO_TCP);
}

static __always_inline struct lb_backend *hammer_row(__u16 backend)
{
	__u32 index = backend;

	return bpf_map_lookup_elem(&backends, &index);
}

static __always_inline __u64 hammer_new_state(__u64 key, __u8 tag, __u32 stamp)
{
	__u64 mixed = hammer_mix(key);
	__u16 nexthop = mixed & 2 ? hammer_nexthop(mixed, stamp) : 0;
	struct lb_backend *row = hammer_row(hammer_backend(mixed));
	__u64 state = lb_state_via(lb_state_new(hammer_backend(mixed), tag, hammer_proto(mixed), stamp), nexthop);

	return lb_state_count(state, row ? LB_READ_ONCE(row->flags) : 0);
}

/* --- operations on the table, each checked by the verifier once --- */

#define HAMMER_TO_CLIENT 0x100	/* beside the TCP flags */

/* What an operation returns: a phase, FREE for a miss, and of these: */
#define HAMMER_PHASE 7
#define HAMMER_EXPIRED 0x10
#define HAMMER_WRONG 0x20

static __always_inline int hammer_seen(__u64 key, __u8 tag, __u64 state)
{
	return lb_state_phase(state) | (state & LB_STATE_EXPIRED ? HAMMER_EXPIRED : 0) |
	       (hammer_pairs(key, tag, state) ? 0 : HAMMER_WRONG);
}

/* A packet with these flags: look-up and update, as in the pipeline. Returns what was found. */
__noinline int hammer_packet(__u64 key, __u32 flags, __u32 stamp)
{
	__u64 mixed = hammer_mix(key);
	struct lb_packet pkt = {
		.now = stamp,
		.proto = hammer_proto(mixed),
		.tcp_flags = flags,
		.to_client = !!(flags & HAMMER_TO_CLIENT),
	};
	struct lb_backend *backend;
	struct lb_conn_ref ref;
	struct lb_conn *conn;
	__u16 nexthop = 0;
	__u64 state = 0;

	if (lb_conn_refer(&ref, key))
		return HAMMER_WRONG;
	conn = lb_conn_find(&ref, &state);
	if (!conn)
		return LB_PHASE_FREE;
	if (pkt.to_client && !lb_state_nexthop(state))
		nexthop = hammer_nexthop(mixed, stamp);
	backend = hammer_row(lb_state_backend(state));
	if (!backend)
		return HAMMER_WRONG;
	lb_conn_update(conn, key, state, &pkt, backend, nexthop);
	if (pkt.events)
		lb_event_note(lb_state_backend(state), pkt.events);
	return hammer_seen(key, ref.tag, state);
}

/* Returns LB_CONTINUE or LB_DROP_TABLE_FULL. */
__noinline int hammer_insert(__u64 key, __u32 stamp)
{
	struct lb_conn_ref ref;

	if (lb_conn_refer(&ref, key))
		return LB_ERROR_TABLES;
	if (lb_conn_insert(&ref, hammer_new_state(key, ref.tag, stamp), stamp))
		return LB_DROP_TABLE_FULL;
	lb_event_note(hammer_backend(hammer_mix(key)), LB_EVENT_OPENED);
	return LB_CONTINUE;
}

/* Swaps a key's entry for a new one, as in the pipeline, or for nothing. Returns whether it did. */
static __always_inline int hammer_swap_from(struct lb_conn *conn, __u64 key, __u8 tag, __u64 state, __u32 stamp, int renew)
{
	__u32 backend = lb_state_backend(state);
	__u64 *deleted;

	if (!lb_conn_swap(conn, state, renew ? hammer_new_state(key, tag, stamp) : 0))
		return 0;
	if (renew) {
		if (lb_state_is_live(state))
			lb_event_moved(backend);
		lb_event_note(hammer_backend(hammer_mix(key)), LB_EVENT_OPENED);
		return 1;
	}
	deleted = bpf_map_lookup_elem(&hammer_deleted, &backend);
	if (deleted && lb_state_is_live(state))
		__sync_fetch_and_add(deleted, 1);
	return 1;
}

/* Returns 1 if it did, 0 if not. */
__noinline int hammer_swap(__u64 key, __u32 stamp, int renew)
{
	struct lb_conn_ref ref;
	struct lb_conn *conn;
	__u64 state = 0;

	if (lb_conn_refer(&ref, key))
		return 0;
	conn = lb_conn_find(&ref, &state);
	return conn && hammer_swap_from(conn, key, ref.tag, state, stamp, renew);
}

/* Looks into a slot, whatever the key that stands there. */
__noinline int hammer_peek(__u32 slot)
{
	__u32 index = slot / LB_CONNS_PER_BUCKET;
	struct lb_bucket *bucket = bpf_map_lookup_elem(&connections, &index);
	struct lb_conn *conn;
	__u64 key, state;
	__u8 tag;

	if (!bucket)
		return HAMMER_WRONG;
	conn = &bucket->conn[slot % LB_CONNS_PER_BUCKET];
	key = LB_READ_ONCE(conn->key);
	tag = lb_hash(key, lb_settings.key[0], lb_settings.key[1]) >> 5;
	return lb_conn_matches(conn, key, tag, &state) ? hammer_seen(key, tag, state) : LB_PHASE_FREE;
}

/* --- the workers --- */

struct hammer {
	struct hammer_worker *self;
	__u64 random;
	__u32 worker;
	__u32 stamp;
	__u16 now;
};

static __always_inline __u64 hammer_key(__u32 index)
{
	return index < HAMMER_KEYS ? hammer_keys[index] : 0;
}

static __always_inline __u64 *hammer_epoch(__u32 index)
{
	return bpf_map_lookup_elem(&hammer_epochs, &index);
}

/* Steps the clock, unless somebody has not come to the last step yet: a packet takes far less than a unit of the real
 * clock, so no operation may see more than one step.
 */
static __always_inline void hammer_step(struct hammer *h)
{
	__u64 *clock = hammer_epoch(HAMMER_EPOCH_CLOCK);

#pragma unroll
	for (__u32 i = 0; i < HAMMER_EPOCH_CLOCK; i += HAMMER_EPOCH_STRIDE) {
		__u64 *other = hammer_epoch(i);
		__u64 epoch = other ? LB_READ_ONCE(*other) : 0;

		if (epoch && epoch != (HAMMER_EPOCH_RUNNING | h->now))
			return;
	}
	h->now++;
	LB_WRITE_ONCE(lb_test_now, h->now);
	if (clock)
		LB_WRITE_ONCE(*clock, h->now);
	h->self->clock_steps++;
}

static __always_inline int hammer_send(struct hammer *h, __u64 key, __u32 flags)
{
	int found = hammer_packet(key, flags, h->stamp);

	h->self->operations++;
	if (found & HAMMER_PHASE)
		h->self->hits++;
	else
		h->self->misses++;
	if (found & HAMMER_EXPIRED)
		h->self->expired_hits++;
	if (found & HAMMER_WRONG)
		h->self->wrong_pairing++;
	return found & (HAMMER_PHASE | HAMMER_EXPIRED);
}

static __always_inline int hammer_open(struct hammer *h, __u64 key)
{
	h->self->operations++;
	if (hammer_insert(key, h->stamp) == LB_CONTINUE) {
		h->self->inserts++;
		return 1;
	}
	h->self->table_full++;
	return 0;
}

static __always_inline void hammer_end(struct hammer *h, __u64 key, int renew)
{
	h->self->operations++;
	if (!hammer_swap(key, h->stamp, renew))
		h->self->overtaken++;
	else if (renew)
		h->self->replaced++;
	else
		h->self->deleted++;
}

/* Of all that anybody could send in a client's name: an ACK, or a FIN, a SYN or a RST. */
static __always_inline __u32 hammer_client_flags(__u64 random)
{
	return random & 3 ? LB_TCP_ACK : 1 << (random >> 2) % 3;
}

/* The packets that confirm a new connection. Returns whether they did. */
static __always_inline int hammer_confirm(struct hammer *h, __u64 key)
{
	hammer_send(h, key, HAMMER_TO_CLIENT | LB_TCP_SYN | LB_TCP_ACK);
	hammer_send(h, key, LB_TCP_ACK);
	return hammer_send(h, key, LB_TCP_ACK) == LB_PHASE_ESTABLISHED;
}

/* A pinned connection: its client closes and resets, its backend never does. */
static __noinline int hammer_pinned(struct hammer *h, __u32 which)
{
	__u64 key = hammer_key(HAMMER_KEY_PINNED + which % HAMMER_PINNED);
	int found = hammer_send(h, key, hammer_client_flags(h->random >> 16));

	hammer_send(h, key, HAMMER_TO_CLIENT | LB_TCP_ACK);
	if (found & HAMMER_EXPIRED)
		h->self->expired_live++;
	found &= HAMMER_PHASE;
	if (found != LB_PHASE_ESTABLISHED && found != LB_PHASE_CLOSING && found != LB_PHASE_REVIVING)
		h->self->lost_pinned++;
	return 0;
}

/* A session is opened, confirmed and ended by its own worker only; others look it up and send ACKs. */
static __noinline int hammer_session(struct hammer *h, __u32 which)
{
	__u64 key, *confirmed;
	int found;

	confirmed = &h->self->confirmed[which %= HAMMER_SESSIONS];
	key = hammer_key(HAMMER_KEY_SESSION + (h->worker & 1) * HAMMER_SESSIONS + which);
	found = hammer_send(h, key, LB_TCP_ACK | (h->random & 1 ? HAMMER_TO_CLIENT : 0));
	if (*confirmed) {
		if (found & HAMMER_EXPIRED)
			h->self->expired_live++;
		if ((found & HAMMER_PHASE) != LB_PHASE_ESTABLISHED)
			h->self->lost_session++;
		else if (h->random & 0x0e)
			return 0;
		h->self->sessions_ended++;
		*confirmed = 0;
		if (h->random & 0x10)
			hammer_send(h, key, HAMMER_TO_CLIENT | LB_TCP_RST);
		else
			hammer_end(h, key, 0);
		return 0;
	}
	if (!found && !hammer_open(h, key))
		return 0;
	if ((found & HAMMER_PHASE) == LB_PHASE_CLOSED)
		hammer_end(h, key, 1);
	if (hammer_confirm(h, key)) {
		*confirmed = 1;
		h->self->sessions_confirmed++;
	}
	return 0;
}

/* A connection that everybody opens, uses, closes, replaces and deletes. */
static __noinline int hammer_common(struct hammer *h)
{
	__u32 window = (h->now >> HAMMER_WINDOW_SHIFT) * HAMMER_WINDOW_MOVE;
	__u32 index = (h->random >> 32) % (h->random >> 28 & 7 ? HAMMER_WINDOW : HAMMER_COMMON);
	__u64 key = hammer_key(HAMMER_KEY_COMMON + (window + index) % HAMMER_COMMON);
	__u32 flags = hammer_client_flags(h->random >> 24);
	__u32 action = (h->random >> 40) & 15;

	if (h->random >> 44 & 1)
		flags |= HAMMER_TO_CLIENT;
	if (!hammer_send(h, key, flags)) {
		if (action < 12)
			hammer_open(h, key);
	} else if (action < 2) {
		hammer_end(h, key, action);
	} else if (action == 2) {
		hammer_open(h, key);	/* as if its look-up had missed */
	}
	return 0;
}

static __noinline int hammer_other(struct hammer *h)
{
	__u32 random = h->random >> 32;
	__u32 index = random % (HAMMER_KEY_COMMON - HAMMER_KEY_SESSION);

	switch (h->random & 3) {
	case 0:		/* a flood: packets of clients that are never seen again */
		hammer_open(h, h->random);
		break;
	case 1:
		h->self->operations++;
		if (hammer_peek(lb_scale(random, lb_settings.buckets * LB_CONNS_PER_BUCKET)) & HAMMER_WRONG)
			h->self->wrong_pairing++;
		break;
	case 2:		/* a session, maybe another worker's */
		hammer_send(h, hammer_key(HAMMER_KEY_SESSION + index),
			    LB_TCP_ACK | (h->random & 4 ? HAMMER_TO_CLIENT : 0));
		break;
	default:
		hammer_common(h);
	}
	return 0;
}

static long hammer_iteration(__u32 index, struct hammer *h)
{
	__u64 *epoch = hammer_epoch(h->worker * HAMMER_EPOCH_STRIDE);

	h->now = lb_now();
	if (epoch)
		LB_WRITE_ONCE(*epoch, HAMMER_EPOCH_RUNNING | h->now);
	if (!h->worker && !(index % HAMMER_STEP))
		hammer_step(h);
	h->random = hammer_mix(h->random + index + h->worker);
	h->stamp = h->now | h->random >> 48 << 16;
	switch (index & 3) {
	case 0:
		hammer_pinned(h, index >> 2);
		break;
	case 1:
		hammer_session(h, index >> 2);
		break;
	case 2:
		hammer_other(h);
		break;
	default:
		hammer_common(h);
	}
	return 0;
}

/* --- before and after, while nothing else runs --- */

static long hammer_choose_key(__u32 candidate, __u32 *chosen)
{
	__u64 key = hammer_mix(candidate);
	__u8 tag = lb_hash(key, lb_settings.key[0], lb_settings.key[1]) >> 5;
	__u32 index = *chosen;

	if (index >= HAMMER_KEYS)
		return 1;
	if ((tag & HAMMER_TAG_MASK) != HAMMER_TAG)
		return 0;
	hammer_keys[index] = key;
	*chosen = index + 1;
	return 0;
}

static __always_inline void hammer_set_up(struct hammer *h)
{
	__u32 chosen = 0;

	bpf_loop(HAMMER_KEY_TRIES, hammer_choose_key, &chosen, 0);
	if (chosen != HAMMER_KEYS)
		h->self->not_set_up++;
	for (__u32 i = 0; i < HAMMER_PINNED; i++) {
		__u64 key = hammer_key(HAMMER_KEY_PINNED + i);

		if (!hammer_open(h, key) || !hammer_confirm(h, key))
			h->self->not_set_up++;
	}
}

/* The frame's first byte is the worker's number, the second what it does. */
SEC("xdp")
int conn_hammer(struct xdp_md *ctx)
{
	__u8 *data = (void *)(long)ctx->data;
	struct hammer h = { .now = lb_now(), .stamp = lb_now() };

	if ((void *)(data + 2) > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	h.worker = data[0];
	h.self = bpf_map_lookup_elem(&hammer_workers, &h.worker);
	if (!h.self)
		return XDP_ABORTED;
	h.random = h.self->random;
	if (data[1] == 0)
		hammer_set_up(&h);
	else if (data[1] == 1)
		bpf_loop(HAMMER_ITERATIONS, hammer_iteration, &h, 0);
	else
		for (__u32 i = 0; i < HAMMER_PINNED; i++)
			hammer_pinned(&h, i);
	h.self->random = h.random;
	return XDP_PASS;
}
