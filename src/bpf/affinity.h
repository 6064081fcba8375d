/* SPDX-License-Identifier: GPL-2.0-only */
/* Client affinity: a record of which backend a client's address is to come back to, for a time after its last connection.
 *
 * A kernel hash map, because only packets that open, confirm or end a connection of a sticky service meet it. A record is
 * made when a connection is confirmed, so that nobody can make one in another's name by SYNs alone. The sweep of user space
 * keeps those of long connections from running out.
 */
#ifndef LB_AFFINITY_H
#define LB_AFFINITY_H

static __always_inline int lb_backend_takes_new(const struct lb_backend *backend, __u16 service)
{
	return LB_READ_ONCE(backend->state) == LB_BACKEND_UP && backend->service == service;
}

static __always_inline struct lb_affinity_key lb_affinity_key(__be32 client, __u16 service)
{
	struct lb_affinity_key key = { .addr = lb_addr_of_ipv4(client), .service = service };

	return key;
}

/* An age beyond half of the clock is a record newer than this CPU's clock. */
static __always_inline int lb_affinity_in_time(const struct lb_affinity *record, __u32 sticky, __u32 now)
{
	__s32 age = now - LB_READ_ONCE(record->last);

	return age <= (__s32)sticky;
}

/* One that is confirmed makes the record, unless there is one that holds: the first of a client's parallel connections
 * decides. Any of the client's connections, confirmed or ended, keeps it fresh.
 */
static __always_inline void lb_affinity_note(__be32 client, __u32 service_index, __u32 index, int confirmed)
{
	struct lb_service *service = bpf_map_lookup_elem(&services, &service_index);
	struct lb_affinity_key key = lb_affinity_key(client, service_index);
	struct lb_affinity made = { .backend = index };
	struct lb_affinity *record;
	struct lb_backend *backend;

	if (!service || !service->sticky)
		return;
	made.last = lb_now_long();
	record = bpf_map_lookup_elem(&affinity, &key);
	if (record) {
		index = record->backend;
		backend = bpf_map_lookup_elem(&backends, &index);
		if (!confirmed || (lb_affinity_in_time(record, service->sticky, made.last) && backend &&
				   lb_backend_takes_new(backend, service_index))) {
			LB_WRITE_ONCE(record->last, made.last);
			return;
		}
	}
	if (confirmed)
		bpf_map_update_elem(&affinity, &key, &made, BPF_ANY);
}

static __always_inline int lb_is_ended_by(__u64 from, __u64 to)
{
	return lb_state_phase(from) >= LB_PHASE_ESTABLISHED && lb_state_phase(from) < LB_PHASE_CLOSED &&
	       lb_state_phase(to) == LB_PHASE_CLOSED;
}

__noinline int lb_conn_follow(__u64 key, __u64 from, __u64 to)
{
	int confirmed = lb_is_confirmed_by(from, to);

	lb_load_follow(from, to);
	if (confirmed || lb_is_ended_by(from, to))
		lb_affinity_note(key, key >> 48, lb_state_backend(to), confirmed);
	return 0;
}

/* The backend that a client of this service is to come back to, or 0. A record whose backend takes no new connections is
 * dropped: should that backend come back, the client has moved on.
 */
__noinline int lb_affinity_backend(__be32 client, __u32 service_index)
{
	struct lb_service *service = bpf_map_lookup_elem(&services, &service_index);
	struct lb_affinity_key key;
	struct lb_affinity *record;
	struct lb_backend *backend;
	__u32 index;

	if (!service || !service->sticky)
		return 0;
	key = lb_affinity_key(client, service_index);
	record = bpf_map_lookup_elem(&affinity, &key);
	if (!record || !lb_affinity_in_time(record, service->sticky, lb_now_long()))
		return 0;
	index = record->backend;
	backend = bpf_map_lookup_elem(&backends, &index);
	if (backend && lb_backend_takes_new(backend, service_index))
		return index;
	if (!lb_profile.explain)
		bpf_map_delete_elem(&affinity, &key);
	return 0;
}

#endif
