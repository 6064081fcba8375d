/* SPDX-License-Identifier: GPL-2.0-only */
/* A new connection: which backend takes it, and its entry in the table. */
#ifndef LB_SELECT_H
#define LB_SELECT_H

/* What a new connection is known by. Passed to functions that the verifier checks once, on their own. */
struct lb_new {
	__u64 hash;	/* of the key, which is made of client, port and service */
	__u64 state;	/* in: of an entry that is not to be used, since it is closed or its backend takes no more; 0: there
			 * is none. Out: of the entry that is still to be put into the table
			 */
	__be32 client;
	__be16 client_port;
	__u16 service;
	__u16 now;
	__u8 proto;
	__u8 made;	/* out: the entry is this packet's, not another CPU's */
	__u8 enters;	/* out: lb_enter is still to be called */
	__u8 reserved[3];
};

static __always_inline int lb_new_refer(struct lb_conn_ref *ref, const struct lb_new *new)
{
	return lb_conn_refer_hashed(ref, lb_conn_key(new->client, new->client_port, new->service), new->hash);
}

/* Whether the client's address and port already talk to this backend through another service: its replies could not be
 * told apart. Returns 1 if so, 0 if not. An entry that is closed or over its timeout gives way: its replies would be
 * taken for those of the new connection, or these for its.
 */
__noinline int lb_tuple_in_use(struct lb_new *new, __u32 index)
{
	struct lb_backend *backend = bpf_map_lookup_elem(&backends, &index);
	__u32 zero = 0;
	void *directory_now = bpf_map_lookup_elem(&directory, &zero);
	struct lb_origin *origin;

	if (!new || !backend || !directory_now)
		return 0;
	origin = lb_origin_find(directory_now, &backend->addr, backend->port, new->proto);
	if (!origin)
		return 0;
	for (int i = 0; i < LB_PAIRS_PER_ORIGIN; i++) {
		struct lb_pair pair = origin->pair[i];
		struct lb_conn_ref ref;
		struct lb_conn *conn;
		__u64 state;
		__u32 rank;

		if (!pair.backend)
			return 0;
		if (pair.service == new->service ||
		    lb_conn_refer(&ref, lb_conn_key(new->client, new->client_port, pair.service)))
			continue;
		conn = lb_conn_find(&ref, &state);
		if (!conn || lb_state_backend(state) != pair.backend)
			continue;
		rank = lb_conn_rate(state, new->now) >> LB_RANK_SHIFT;
		if (rank <= LB_RANK_UNCONFIRMED)
			return 1;
		if (lb_profile.explain)
			continue;
		if (!lb_conn_swap(conn, state, 0))
			return 1;
		/* Not as an insertion counts it: the verifier's stack is too small for one more call here. */
		if (lb_state_is_live(state))
			lb_event_expired(pair.backend);
	}
	return 0;
}

static __always_inline __u8 lb_backend_flags_of(__u32 index)
{
	struct lb_backend *backend = bpf_map_lookup_elem(&backends, &index);

	return backend ? backend->flags : 0;
}

/* Where on the service's ring the connection starts to look. */
static __always_inline __u32 lb_ring_position(const struct lb_service *service, const struct lb_new *new, __u32 length)
{
	__u32 index = new->service;
	struct lb_service_state *state;
	__u64 word = new->client;

	switch (service->scheduler) {
	case LB_SCHEDULER_MAGLEV:
		word |= (__u64)new->client_port << 32;
		/* fallthrough */
	case LB_SCHEDULER_IP_HASH:
		return lb_scale(lb_hash(word, lb_settings.key[2], lb_settings.key[3]) >> 32, length);
	default:
		state = bpf_map_lookup_elem(&service_states, &index);
		if (!state)
			return 0;
		if (lb_profile.explain)
			return LB_READ_ONCE(state->rotation) % length;
		return __sync_fetch_and_add(&state->rotation, 1) % length;
	}
}

/* Whether a backend takes this connection: 0, or why not. */
static __always_inline int lb_refuses(struct lb_new *new, __u32 candidate)
{
	struct lb_backend *backend = bpf_map_lookup_elem(&backends, &candidate);
	int reason = 0;

	if (!backend || !lb_backend_takes_new(backend, new->service))
		reason = LB_DROP_NO_BACKEND;
	else if (backend->flags & LB_BACKEND_SHARED && lb_tuple_in_use(new, candidate))
		reason = LB_DROP_TUPLE_IN_USE;
	if (reason)
		lb_explain_refusal(candidate, reason);
	return reason;
}

/* The backend for a new connection by the service's scheduler, or minus the reason why there is none. */
__noinline int lb_select(struct lb_new *new)
{
	int reason = LB_DROP_NO_BACKEND, refused;
	__u32 offset, length, position, index;
	struct lb_service *service;
	__u64 ring;

	if (!new)
		return -LB_ERROR_TABLES;
	index = new->service;
	service = bpf_map_lookup_elem(&services, &index);
	if (!service)
		return -LB_ERROR_TABLES;
	ring = LB_READ_ONCE(service->ring);
	offset = (ring >> LB_RING_OFFSET_SHIFT) & 0xffffff;
	length = (ring >> LB_RING_LENGTH_SHIFT) & 0xffffff;
	if (!length)
		return -LB_DROP_NO_BACKEND;
	position = lb_ring_position(service, new, length);
	lb_explain_ring(length, position);
	if (service->scheduler == LB_SCHEDULER_LEAST_CONN) {
		index = lb_least_loaded(index, position);
		lb_explain_least(index);
		refused = lb_refuses(new, index);
		if (!refused)
			return index;
		reason = refused;
	}
	for (int i = 0; i <= LB_SELECT_RETRIES; i++) {
		__u32 line = offset + position / LB_SLOTS_PER_LINE;
		struct lb_ring_line *slots = bpf_map_lookup_elem(&rings, &line);
		__u32 candidate;

		if (!slots)
			return -LB_ERROR_TABLES;
		candidate = LB_READ_ONCE(slots->backend[position % LB_SLOTS_PER_LINE]);
		refused = lb_refuses(new, candidate);
		if (!refused)
			return candidate;
		if (refused == LB_DROP_TUPLE_IN_USE)
			reason = refused;
		position = position + 1 == length ? 0 : position + 1;
	}
	return -reason;
}

/* What becomes of a packet for which there is no backend, by the reason that lb_select gave: where none takes it, the
 * service may leave it to the kernel. Not in lb_select, whose loop the verifier would follow once more for each reason.
 */
static __always_inline int lb_without_backend(const struct lb_new *new, int reason)
{
	__u32 index = new->service;
	struct lb_service *service = bpf_map_lookup_elem(&services, &index);

	if (reason == LB_DROP_NO_BACKEND && service && LB_READ_ONCE(service->flags) & LB_SERVICE_PASS_EMPTY)
		return LB_PASS_NO_BACKEND;
	return reason;
}

/* Puts the entry of a new connection into the table. Returns 0 or the reason of a drop. Called by who called lb_connect: their
 * stacks together are too large.
 */
__noinline int lb_enter(struct lb_new *new)
{
	struct lb_conn_ref ref;

	if (!new || lb_new_refer(&ref, new))
		return LB_ERROR_TABLES;
	return lb_conn_insert(&ref, new->state, new->now);
}

/* Whether the table has room for a new connection: asked by a copy that explains. */
__noinline int lb_has_room(struct lb_new *new)
{
	struct lb_conn_ref ref;

	return new && !lb_new_refer(&ref, new) && lb_conn_victim(&ref, new->now);
}

/* Selects a backend and renews the entry, or leaves a new one to lb_enter. Returns the backend's index, or minus the reason
 * why not.
 */
__noinline int lb_connect(struct lb_new *new)
{
	struct lb_conn_ref ref;
	struct lb_conn *conn;
	__u64 old, state;
	int backend;

	if (!new || lb_new_refer(&ref, new))
		return -LB_ERROR_TABLES;
	backend = lb_affinity_backend(new->client, new->service);
	lb_explain_recorded(backend);
	if (!backend || lb_refuses(new, backend))
		backend = lb_select(new);
	if (backend < 0)
		return -lb_without_backend(new, -backend);
	state = lb_state_new(backend, ref.tag, new->proto, new->now);
	state = lb_state_count(state, lb_backend_flags_of(backend));

	conn = lb_conn_find(&ref, &old);
	if (lb_profile.explain) {
		int room = conn || lb_has_room(new);

		lb_explain_choice(backend, !room);
		return room ? backend : -LB_DROP_TABLE_FULL;
	}
	if (!conn) {
		new->state = state;
		new->enters = 1;
		return backend;
	}
	if (!((old ^ new->state) & ~LB_STATE_SEEN) && lb_conn_swap(conn, old, state)) {
		/* An entry of another backend, or of another connection of the same client's port. */
		if (lb_state_is_live(old))
			lb_event_moved(lb_state_backend(old));
		new->made = 1;
		return backend;
	}
	/* Another CPU was faster with a packet of the same connection: its choice stands. */
	if (lb_conn_find(&ref, &old) && lb_state_phase(old) != LB_PHASE_CLOSED)
		return lb_state_backend(old);
	return -LB_DROP_TABLE_FULL;
}

#endif
