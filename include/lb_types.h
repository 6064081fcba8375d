/* SPDX-License-Identifier: GPL-2.0-only */
/* The rows of every table that the kernel program and the control plane share: the one definition, from which the Rust
 * types are generated. Include after the integer types (vmlinux.h, or linux/types.h in user space).
 *
 * Rows are 64 bytes, one cache line. "Raw" means as the bytes stand in a packet (network byte order); everything else is
 * in host byte order. Index 0 of services, backends and next hops means "none".
 */
#ifndef LB_TYPES_H
#define LB_TYPES_H

#include "lb_counters.h"

enum lb_constants {
	LB_ABI_VERSION = 5,	/* of the rows' layout and meaning; kept in the pinned settings */
	LB_LINE = 64,
	LB_SERVICES_PER_BUCKET = 2,
	LB_PAIRS_PER_ORIGIN = 8,
	LB_SLOTS_PER_LINE = 32,
	LB_CONNS_PER_BUCKET = 4,
	LB_SELECT_RETRIES = 8,	/* slots looked at after one whose backend does not take the connection */
	LB_LEAST_EXACT = 64,	/* members of a service over which the least loaded is found exactly */
	LB_LEAST_WALK = 256,	/* slots of the ring looked at for the next of equally loaded members */
	LB_UNRESOLVED_ROWS = 256,
	LB_PARTIAL_SENDERS = 4096,
	LB_TAG_SHIFT = 5,	/* where in a key's hash its tag begins */
	LB_AGE_LIMIT = 65520,	/* an age this close to wrapping is another CPU's newer clock: 0 */
	LB_TIMEOUT_SLOTS = 16,	/* phases, and phases of UDP */
	LB_TIMEOUT_UDP = 8,	/* where those of UDP begin */
	LB_REASON_BITS = 5,	/* of a reason's number within its class */
	LB_REASON_SLOTS = 160,
	LB_REASON_WORDS = 3,	/* of 64 bits, for a bit of each reason */
	LB_HISTOGRAM_BUCKETS = 16,
	LB_HISTOGRAM_FIRST = 64,	/* microseconds: the bound of the first bucket */
	LB_HANDSHAKES = 65536,	/* under way at once, of which the time is taken */
	LB_HANDSHAKES_PER_UNIT = 256,	/* of the table's clock, for each backend and CPU: reading the time is dear in a flood */
	LB_SNAPSHOT_LENGTH = 2048,	/* bytes of a frame that a capture can hold */
};

/* An IPv6 address, or an IPv4 one mapped into it (RFC 4291, 2.5.5.2), raw. */
struct lb_addr {
	__u64 half[2];
};

/* --- directory: swapped whole on a reload; first the service buckets, then the origin rows --- */

/* (address, port, protocol) -> service. Port 0 and protocol 0 name the address itself: `serves` says what it serves. */
struct lb_service_entry {
	struct lb_addr addr;
	__be16 port;
	__u8 proto;
	__u8 serves;	/* LB_SERVES_*, in an address' own entry */
	__u16 service;	/* 0 in an address' own entry */
	__u16 used;	/* 0: the entry is free */
};

enum lb_serves {
	LB_SERVES_TCP = 1,
	LB_SERVES_UDP = 2,
};

struct lb_service_bucket {
	struct lb_service_entry entry[LB_SERVICES_PER_BUCKET];
	__u64 reserved[2];
};

/* A service and what a backend is called in it. */
struct lb_pair {
	__u16 service;
	__u16 backend;	/* 0: the pair and all after it are free */
};

/* Where replies come from: (address, port, protocol) of a backend -> the services it may answer for. */
struct lb_origin {
	struct lb_addr addr;
	__be16 port;
	__u8 proto;
	__u8 reserved0[5];
	struct lb_pair pair[LB_PAIRS_PER_ORIGIN];
	__u64 reserved1;
};

/* --- services --- */

enum lb_scheduler {
	LB_SCHEDULER_ROUND_ROBIN = 1,
	LB_SCHEDULER_WEIGHTED_ROUND_ROBIN = 2,
	LB_SCHEDULER_IP_HASH = 3,
	LB_SCHEDULER_MAGLEV = 4,
	LB_SCHEDULER_LEAST_CONN = 5,
};

/* Where a service's ring lies, or its members, in one word so that one store publishes it: offset in lines, length in
 * slots.
 */
enum lb_ring_layout {
	LB_RING_OFFSET_SHIFT = 0,	/* 24 bits */
	LB_RING_LENGTH_SHIFT = 24,	/* 24 bits */
	LB_RING_GENERATION_SHIFT = 48,	/* 16 bits */
};

enum lb_service_flags {
	LB_SERVICE_PASS_EMPTY = 1,	/* what no backend takes is the kernel's, untouched */
};

/* What a service's own timeouts are of. */
enum lb_service_timeout {
	LB_SERVICE_TIMEOUT_ESTABLISHED = 0,
	LB_SERVICE_TIMEOUT_UNCONFIRMED = 1,
	LB_SERVICE_TIMEOUT_CLOSING = 2,
	LB_SERVICE_TIMEOUT_UDP = 3,
	LB_SERVICE_TIMEOUTS = 4,
};

struct lb_service {
	struct lb_addr addr;
	__be16 port;
	__u8 proto;	/* 0: the row is free */
	__u8 scheduler;	/* enum lb_scheduler */
	__u32 sticky;	/* how long a client's record holds, in units of the table's clock; 0: there are none */
	__u64 ring;	/* enum lb_ring_layout */
	__u64 members;	/* the same: each backend once; empty beyond LB_LEAST_EXACT, and where nobody asks for loads */
	/* By enum lb_service_timeout, in units of the table's clock; 0: as in the settings. Only sweeps of the control plane
	 * read them: the settings, by which packets rate slots, hold the longest of all services.
	 */
	__u16 timeout[LB_SERVICE_TIMEOUTS];
	__u8 flags;	/* enum lb_service_flags; changed live by one store */
	__u8 reserved[15];
};

/* What packets write of a service. */
struct lb_service_state {
	__u64 rotation;	/* new connections that walked the ring */
	__u64 reserved[7];
};

struct lb_ring_line {
	__u16 backend[LB_SLOTS_PER_LINE];
};

/* --- backends: one row is one (service, backend) pair --- */

/* The order matters: flows of UDP stay on what is below DOWN. */
enum lb_backend_state {
	LB_BACKEND_NONE = 0,	/* the row is free, or its backend was removed */
	LB_BACKEND_UP = 1,
	LB_BACKEND_DRAIN = 2,	/* live connections go on, no new ones */
	LB_BACKEND_DOWN = 3,	/* the same for TCP; flows of UDP go to another */
	LB_BACKEND_RESET = 4,	/* TCP goes to another, too, whose RST tells the client */
	LB_BACKEND_DISABLED = 5,	/* as DOWN: another number only for those who look at the rows */
};

enum lb_backend_flags {
	LB_BACKEND_SHARED = 1,	/* other services have the same address, port and protocol as a backend */
	LB_BACKEND_COUNTED = 2,	/* its live connections are counted in its load */
	LB_BACKEND_STICKY = 4,	/* clients are recorded: its service has a sticky time */
	LB_BACKEND_DRAINS = 8,	/* for people: the operator drains it, whatever `state` says now */
	LB_BACKEND_DISABLES = 16,	/* the same: the operator disabled it */
	LB_BACKEND_REMOVED = 128,	/* not configured any more: it drains, and its row is freed when no entry names it */
};

struct lb_backend {
	struct lb_addr addr;
	__be16 port;
	__u16 service;
	__u8 state;	/* enum lb_backend_state; changed live by one store */
	__u8 flags;	/* enum lb_backend_flags */
	__u8 weight;	/* for people: the ring has it already */
	__u8 mode;	/* 0: NAT */
	__u16 nexthop;	/* changed live by one store */
	__u8 reserved[38];
};

/* A backend's load is opened - ended: the entries that have the counted bit. Packets write it. Two counts that only grow,
 * because they also tell how much happened during a walk over the table. A load may be off by what is under way on other
 * CPUs, below 0 too.
 */
struct lb_backend_load {
	__u64 opened;
	__u64 ended;
};

/* Whether a backend answers new connections of TCP: how many SYNs since its last SYN-ACK, and how many it refused. Packets
 * write it by plain stores, and lose some where two CPUs meet.
 */
struct lb_backend_answers {
	__u32 unanswered;
	__u32 refused;
};

/* --- what became of the connections of a backend --- */

/* How long something took. Bucket i counts what took no more than LB_HISTOGRAM_FIRST << i microseconds and more than the
 * bucket before; the last one has no bound.
 */
struct lb_histogram {
	__u64 bucket[LB_HISTOGRAM_BUCKETS];
	__u64 microseconds;	/* of all together */
};

/* Counted by atomic additions, of packets and of sweeps, once for each entry: opened (lb_backend_counters) + revived =
 * closed + reset + expired + evicted + moved + the entries that live.
 */
struct lb_backend_events {
	struct lb_histogram handshake;	/* from the client's first SYN to the SYN-ACK */
	__u64 closed;		/* FINs of both sides */
	__u64 reset;		/* a RST of the backend, or of an operator */
	__u64 expired;		/* over its timeout, found by a sweep or by who took the slot */
	__u64 evicted;		/* unconfirmed, and the slot was needed */
	__u64 moved;		/* to another backend, because this one takes its packets no more */
	__u64 revived;		/* a packet came after a sweep had found it over its timeout */
	__u64 syn_retransmits;	/* SYNs of a connection that was not confirmed yet */
	__u64 rsts;		/* segments of the backend with RST */
	/* What lb_backend_counters counted in tables that were given up, added by the control plane: connections, packets and
	 * bytes to the backend, packets and bytes to clients.
	 */
	__u64 carried[5];
	__u64 reserved[2];
};

/* What checks of a backend found: written by the control plane alone. */
struct lb_backend_checks {
	struct lb_histogram duration;
	__u64 passed;
	__u64 failed;
	__u64 unchecked;	/* that this host could not make */
	__u64 reserved[4];
};

/* When a handshake began: tag 32 | microseconds 32. Lossy: where two share a row the earlier one is not measured. */
struct lb_handshake {
	__u64 word;
};

/* What the control plane did, over all its lives. */
struct lb_history {
	__u64 reloads;		/* carried out */
	__u64 reloads_failed;
	__u64 last_reload_failed;	/* 1 or 0 */
	__u64 changes;		/* of what runs: reloads and live ones */
	__u64 last_change;	/* seconds since 1970 */
	/* Rows of backends whose counts were moved to row 0: how many 48 | the one that is being moved, or 0, 16. */
	__u64 retiring;
	__u64 retired_sum;	/* of all words of the counters of row 0, on all CPUs, once it is moved */
	__u64 retiring_in;	/* which backend_counters, by the map's id */
};

/* --- client affinity: met by packets that open, confirm or close a connection of a sticky service --- */

struct lb_affinity_key {
	struct lb_addr addr;	/* of the client */
	__u16 service;
	__u16 reserved[3];
};

struct lb_affinity {
	__u16 backend;
	__u16 reserved;
	__u32 last;	/* jiffies >> clock_shift, 32 bits, when a connection of the client was last known to live */
};

/* --- next hops --- */

enum lb_nexthop_flags {
	LB_NEXTHOP_VALID = 1,		/* both MACs are known */
	LB_NEXTHOP_NO_REDIRECT = 2,	/* what XDP redirects to the interface would vanish */
	LB_NEXTHOP_NO_TX = 4,		/* what XDP sends back out of it by XDP_TX would vanish */
};

struct lb_nexthop {
	__u32 ifindex;	/* the interface that faces the next hop; known before its MAC is */
	__u16 mtu;	/* bytes from the IP header on */
	__u8 flags;	/* enum lb_nexthop_flags; changed live by one store */
	__u8 reserved0;
	__u8 macs[12];	/* destination, source: as a frame begins */
	__u8 reserved1[44];
};

struct lb_neighbour_key {
	__u32 ifindex;
	__u8 mac[6];
	__u16 reserved;
};

/* What is known of an interface that the FIB may name. One without a row gets nothing directly. */
struct lb_egress {
	__u32 flags;	/* enum lb_nexthop_flags, as of its next hops */
};

/* A neighbour that a packet met and the kernel did not know: the control plane has it asked for. One word, so that it is
 * never half written; where two share a row one of them waits for its next packet.
 */
struct lb_unresolved {
	__u64 neighbour;	/* address (raw) 32 | interface index 32; 0: none */
};

/* --- connections --- */

/* Life of an entry. The state word is the only authority; the key is a label that means nothing without it. */
enum lb_phase {
	LB_PHASE_FREE = 0,		/* all-zero memory is an empty table */
	LB_PHASE_UNCONFIRMED = 1,	/* packets of the client only */
	LB_PHASE_ANSWERED = 2,		/* still unconfirmed: the backend has answered, the client not yet again */
	LB_PHASE_ESTABLISHED = 3,	/* confirmed: packets of both sides, the client's last */
	LB_PHASE_CLOSING = 4,		/* one side closes */
	LB_PHASE_REVIVING = 5,		/* closing, but the client has sent since */
	LB_PHASE_CLOSED = 6,		/* RST of the backend, or FIN of both */
	LB_PHASE_CLAIMED = 7,		/* being written by whoever swapped this in */
};

/* Bits of the state word. */
enum lb_state_layout {
	LB_STATE_BACKEND_SHIFT = 0,		/* 16 bits */
	LB_STATE_PHASE_SHIFT = 16,		/* 3 bits, enum lb_phase */
	LB_STATE_COUNTED_SHIFT = 19,		/* it is in its backend's load */
	LB_STATE_CLIENT_CLOSED_SHIFT = 20,	/* FIN of the client seen */
	LB_STATE_BACKEND_CLOSED_SHIFT = 21,	/* FIN of the backend seen */
	LB_STATE_EXPIRED_SHIFT = 22,		/* a sweep found it over its timeout; a hit clears it */
	LB_STATE_UDP_SHIFT = 23,		/* which timeout holds */
	LB_STATE_TAG_SHIFT = 24,		/* 8 bits of the key's hash */
	LB_STATE_NEXTHOP_SHIFT = 32,		/* 16 bits: towards the client; 0: not known yet */
	LB_STATE_SEEN_SHIFT = 48,		/* 16 bits: jiffies >> clock_shift */
};

struct lb_conn {
	__u64 key;	/* client address (raw) 32 | client port (raw) 16 | service 16 */
	__u64 state;
};

struct lb_bucket {
	struct lb_conn conn[LB_CONNS_PER_BUCKET];
};

/* --- counters, per CPU --- */

struct lb_counter {
	__u64 packets;
	__u64 bytes;	/* whole frames */
};

struct lb_backend_counters {
	__u64 connections;	/* opened */
	struct lb_counter to_backend;
	struct lb_counter to_client;
	__u64 timed;		/* the table's clock 32 | handshakes begun by it whose time is taken 32 */
	__u64 reserved[2];
};

enum lb_class {
#define X(number, name, rust) LB_CLASS_##name = number,
	LB_CLASSES(X)
#undef X
};

enum lb_reason {
	LB_CONTINUE = 0,	/* nothing has become of the packet yet */
#define X(class, number, name, text, help) LB_##class##_##name = (LB_CLASS_##class << LB_REASON_BITS) | number,
	LB_REASONS(X)
#undef X
};

/* --- watching: what trace and capture are told --- */

/* What a packet did to its connection. */
enum lb_event_kind {
	LB_EVENT_OPENED = 1,
	LB_EVENT_CONFIRMED = 2,
	LB_EVENT_CLOSED = 4,
	LB_EVENT_RESET = 8,
	LB_EVENT_REVIVED = 16,
	LB_EVENT_SYN_RETRANSMIT = 32,
	LB_EVENT_RST = 64,
	LB_EVENT_WATCHED = 128,	/* of a packet under way: somebody watches, though it did nothing */
};

enum lb_watch_wants {
	LB_WATCH_PACKETS = LB_EVENT_WATCHED,	/* one record for a packet that is meant */
	LB_WATCH_FRAMES = 256,	/* and its frame: as it came, and as it left if that differs */
};

/* Who watches, and what is meant. Written by user space; the rest by packets. All that is 0 means "any". */
struct lb_watch {
	__u32 wants;		/* enum lb_watch_wants; 0: nobody watches, which is all that packets look at then */
	__u32 holder;		/* process id, for people */
	__u64 until;		/* CLOCK_MONOTONIC, ns: the lease; one that does not renew it was killed */
	__u64 reasons[LB_REASON_WORDS];	/* a bit for each that is meant */
	__u32 events;		/* enum lb_event_kind: these are meant whatever the reason */
	__be32 client;
	__be32 client_mask;
	__be32 vip;
	__be32 backend;
	__be16 vip_port;
	__be16 backend_port;
	__u8 proto;
	__u8 reserved0;
	__u16 generation;	/* another one each time that somebody begins, or goes on */
	__u32 sample;		/* one in so many connections; 0 and 1: all */
	__u32 rate;		/* records a second at most */
	__u32 length;		/* bytes of a frame at most */
	__u64 second;		/* which second is counted */
	__u64 sent;		/* records in it */
	__u64 suppressed;	/* over the rate, since the watch began */
	__u64 lost;		/* for which the ring had no room */
};

/* One record of the ring; the frame's bytes follow. */
struct lb_event {
	__u64 time;		/* CLOCK_MONOTONIC, ns */
	__u32 ifindex;
	__u32 frame_len;
	__u32 captured;		/* bytes that follow of the frame as it came */
	__u16 reason;		/* enum lb_reason */
	__u16 service;
	__u16 backend;
	__u8 events;		/* enum lb_event_kind */
	__u8 to_client;
	__u8 proto;		/* 0: nothing is known of addresses and ports */
	__u8 tcp_flags;
	__u8 has_ports;		/* else they are 0 because they are not known */
	__u8 nobodys;		/* neither a client's nor a backend's: its first bytes follow in any case */
	__be32 source;		/* as the packet came */
	__be32 destination;
	__be16 sport;
	__be16 dport;
	__u32 captured_after;	/* bytes that follow these, of the frame as it left */
	__u32 out_ifindex;	/* by which XDP sent it; 0: it did not */
	__u32 generation;	/* lb_watch's, when the frame was kept */
};

/* Where a frame is kept until it is known what became of it. */
struct lb_watch_scratch {
	struct lb_event event;
	__u8 frames[2 * LB_SNAPSHOT_LENGTH];
};

/* --- explaining: what a copy of the program that changes nothing notes of its steps --- */

/* What refused a candidate: its index and the reason. */
struct lb_refusal {
	__u16 backend;
	__u16 reason;	/* enum lb_reason */
};

struct lb_explained {
	__u64 state;		/* of the connection found; 0: none */
	__u32 ring_length;
	__u32 ring_position;	/* where the search begins */
	__u32 hop_ifindex;
	__u32 hop_mtu;
	__u16 service;
	__u16 found;		/* backend of the connection found */
	__u16 recorded;		/* by the client's affinity record; 0: there is none */
	__u16 least;		/* with the least load, where the scheduler asks for it */
	__u16 chosen;		/* by the scheduler, if it was asked */
	__u16 hop;		/* next hop's row; 0: none */
	__u8 goes_on;		/* the packet belongs to the connection found */
	__u8 by_fib;		/* the kernel's FIB was asked for the next hop */
	__u8 refusals;
	__u8 no_slot;		/* there is no room for a new connection */
	__u8 macs[12];		/* destination, source */
	struct lb_refusal refusal[LB_SELECT_RETRIES + 3];
	__u32 reason;	/* enum lb_reason */
	__u32 out_ifindex;	/* by which XDP sends it; 0: it does not */
};

/* --- settings --- */

/* What the program is loaded with; kept in a pinned map too, for the instance that takes over and for tools. */
struct lb_settings {
	__u32 abi;
	__u32 clock_shift;		/* the table's clock is jiffies >> this */
	__u32 hz;			/* jiffies a second */
	__u32 buckets;			/* of the connection table */
	__u32 service_buckets;		/* of the directory: these first */
	__u32 origins;			/* of the directory: then these rows */
	__u64 key[4];			/* secret: where connections lie, which slot of a ring they take */
	__u16 timeout[LB_TIMEOUT_SLOTS];	/* by phase, + 8 for UDP; in units of the table's clock */
};

_Static_assert(sizeof(struct lb_service_bucket) == LB_LINE, "a bucket of services is one line");
_Static_assert(sizeof(struct lb_origin) == LB_LINE, "an origin is one line");
_Static_assert(sizeof(struct lb_service) == LB_LINE, "a service is one line");
_Static_assert(sizeof(struct lb_service_state) == LB_LINE, "a service's state is one line");
_Static_assert(sizeof(struct lb_ring_line) == LB_LINE, "a line of a ring is one line");
_Static_assert(sizeof(struct lb_backend) == LB_LINE, "a backend is one line");
_Static_assert(sizeof(struct lb_nexthop) == LB_LINE, "a next hop is one line");
_Static_assert(sizeof(struct lb_bucket) == LB_LINE, "a bucket of connections is one line");
_Static_assert(sizeof(struct lb_backend_counters) == LB_LINE, "a backend's counters are one line");
_Static_assert(sizeof(struct lb_backend_load) == 16, "loads are packed: a scan meets many");
_Static_assert(sizeof(struct lb_backend_answers) == 8, "answers are packed: a poll reads all of them");
_Static_assert(sizeof(struct lb_backend_events) == 4 * LB_LINE, "events of a backend are four lines");
_Static_assert(sizeof(struct lb_backend_checks) == 3 * LB_LINE, "checks of a backend are three lines");
_Static_assert(sizeof(struct lb_handshake) == 8, "handshakes are packed: most are never asked for again");
_Static_assert(sizeof(struct lb_history) == LB_LINE, "the history is one line");
_Static_assert(sizeof(struct lb_watch) == 112, "no hidden padding in what is watched");
_Static_assert(sizeof(struct lb_event) == 56, "no hidden padding in a record");
_Static_assert(sizeof(struct lb_explained) == 104, "no hidden padding in an explanation");
_Static_assert(LB_REASON_SLOTS <= LB_REASON_WORDS * 64, "a bit for each reason");
_Static_assert(sizeof(struct lb_affinity_key) == 24, "no hidden padding in a hash key");
_Static_assert(sizeof(struct lb_affinity) == 8, "no hidden padding in a hash value");
_Static_assert(sizeof(struct lb_neighbour_key) == 12, "no hidden padding in a hash key");
_Static_assert(sizeof(struct lb_settings) == 88, "settings");
_Static_assert((LB_CLASS_ERROR + 1) << LB_REASON_BITS == LB_REASON_SLOTS, "a counter for each reason");

#endif
