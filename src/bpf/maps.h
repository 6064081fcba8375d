/* SPDX-License-Identifier: GPL-2.0-only */
/* Every table, and what the program is loaded with. Sizes given as 1 are set by the loader.
 *
 * All tables that a packet of an established connection meets are arrays. Those of 64-byte rows are mmapable, so that
 * a row is one cache line and user space can store single fields while packets pass.
 */
#ifndef LB_MAPS_H
#define LB_MAPS_H

/* Chosen at load time, so that the verifier removes what a set-up does not use. */
struct lb_profile {
	__u8 skb_mode;		/* attached in SKB mode: partial checksums stay partial */
	__u8 partial_possible;	/* frames of local senders may arrive with partial checksums */
	__u8 test_clock;	/* the table's clock is lb_test_now, a random number lb_test_random */
	__u8 stack;		/* everything that is translated is left to the kernel to deliver */
	__u8 explain;		/* changes no table and counts nothing, but notes its steps in lb_explained */
	__u8 blind;		/* cannot be watched: what watching costs is measured against it */
	__u8 reserved[2];
};

const volatile struct lb_profile lb_profile = {};
const volatile struct lb_settings lb_settings = {};

/* The table's clock, chance and the time in microseconds, under test. */
__u32 lb_test_now;
__u32 lb_test_random;
__u32 lb_test_micros;

/* The steps of a copy that explains. */
struct lb_explained lb_explained;

/* A section of its own, so that all copies of the program share it: a packet looks at one word of it, at a fixed address. */
struct lb_watch lb_watch SEC(".data.watch");

#define LB_CAN_BE_WATCHED (!lb_profile.blind && !lb_profile.explain)

/* Always 0, which the verifier does not know. */
__u32 lb_opaque_zero;

struct directory_lines {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct lb_service_bucket);	/* or struct lb_origin */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct directory_lines);
} directory SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct lb_service);
} services SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct lb_service_state);
} service_states SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct lb_ring_line);
} rings SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct lb_backend);
} backends SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct lb_backend_load);
} backend_loads SEC(".maps");

/* Whether backends answer: for the control plane, which checks at once what does not. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct lb_backend_answers);
} backend_answers SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct lb_backend_events);
} backend_events SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct lb_backend_checks);
} backend_checks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, LB_HANDSHAKES);
	__type(key, __u32);
	__type(value, struct lb_handshake);
} handshakes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct lb_history);
} history SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4 << 20);
} watched SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct lb_watch_scratch);
} watch_scratch SEC(".maps");

/* Which backend a client is to come back to. The least recently used give way where there are too many. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1);
	__type(key, struct lb_affinity_key);
	__type(value, struct lb_affinity);
} affinity SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct lb_nexthop);
} nexthops SEC(".maps");

/* Which next hop a neighbour is; met by the first reply of a connection. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct lb_neighbour_key);
	__type(value, __u32);
} neighbours SEC(".maps");

/* How frames leave by an interface that has no next hop's row yet; by interface index. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, __u32);
	__type(value, struct lb_egress);
} egresses SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, LB_UNRESOLVED_ROWS);
	__type(key, __u32);
	__type(value, struct lb_unresolved);
} unresolved SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct lb_bucket);
} connections SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, LB_REASON_SLOTS);
	__type(key, __u32);
	__type(value, struct lb_counter);
} reason_counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct lb_backend_counters);
} backend_counters SEC(".maps");

/* For the next instance and for tools: the program itself has it in .rodata. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct lb_settings);
} settings SEC(".maps");

/* Types that no map and no global names would be missing from the program's BTF, and so from user space. */
struct lb_exported_types {
	enum lb_constants constants;
	struct lb_service_bucket service_bucket;
	struct lb_origin origin;
	enum lb_serves serves;
	enum lb_scheduler scheduler;
	enum lb_service_flags service_flags;
	enum lb_service_timeout service_timeout;
	enum lb_ring_layout ring_layout;
	enum lb_backend_state backend_state;
	enum lb_backend_flags backend_flags;
	enum lb_nexthop_flags nexthop_flags;
	enum lb_event_kind event_kind;
	enum lb_watch_wants watch_wants;
	struct lb_event event;
	enum lb_phase phase;
	enum lb_state_layout state_layout;
	enum lb_class class;
	enum lb_reason reason;
};

const volatile struct lb_exported_types lb_exported_types = {};

#endif
