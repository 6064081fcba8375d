/* SPDX-License-Identifier: GPL-2.0-only */
/* The directory: which service a packet is for, and which backend of which services it comes from.
 *
 * A key has two candidate lines. The control plane puts it into the second only while the first is full, so a first
 * line with room ends the search.
 */
#ifndef LB_SERVICE_H
#define LB_SERVICE_H

static __always_inline struct lb_addr lb_addr_of_ipv4(__be32 ipv4)
{
	struct lb_addr addr = { { 0, (__u64)ipv4 << 32 | bpf_htonl(0xffff) } };

	return addr;
}

static __always_inline __be32 lb_addr_to_ipv4(const struct lb_addr *addr)
{
	return addr->half[1] >> 32;
}

static __always_inline int lb_addr_equal(const struct lb_addr *a, const struct lb_addr *b)
{
	return a->half[0] == b->half[0] && a->half[1] == b->half[1];
}

static __always_inline struct lb_service_entry *lb_service_in(struct lb_service_bucket *bucket,
							       const struct lb_addr *addr, __be16 port, __u8 proto)
{
#pragma unroll
	for (int i = 0; i < LB_SERVICES_PER_BUCKET; i++) {
		struct lb_service_entry *entry = &bucket->entry[i];

		if (entry->port == port && entry->proto == proto && entry->used &&
		    lb_addr_equal(&entry->addr, addr))
			return entry;
	}
	return NULL;
}

static __always_inline struct lb_service_entry *lb_service_find(void *directory_now, __be32 ipv4, __be16 port,
								 __u8 proto)
{
	struct lb_addr addr = lb_addr_of_ipv4(ipv4);
	__u64 hash = lb_hash_endpoint(&addr, port, proto, lb_settings.key[0], lb_settings.key[1]);
	__u32 first = lb_scale(hash >> 32, lb_settings.service_buckets);
	__u32 second = lb_scale(hash, lb_settings.service_buckets);
	struct lb_service_bucket *bucket = bpf_map_lookup_elem(directory_now, &first);
	struct lb_service_entry *entry;

	if (!bucket)
		return NULL;
	entry = lb_service_in(bucket, &addr, port, proto);
	if (entry || !bucket->entry[LB_SERVICES_PER_BUCKET - 1].used)
		return entry;
	bucket = bpf_map_lookup_elem(directory_now, &second);
	return bucket ? lb_service_in(bucket, &addr, port, proto) : NULL;
}

/* Whether the address is a VIP that has a service of the protocol. A function of its own, out of the way of packets that
 * are whole.
 */
__noinline int lb_vip_serves(__be32 ipv4, __u32 proto)
{
	__u8 serves = proto == IPPROTO_TCP ? LB_SERVES_TCP : proto == IPPROTO_UDP ? LB_SERVES_UDP : 0;
	struct lb_service_entry *entry;
	void *directory_now;
	__u32 zero = 0;

	directory_now = bpf_map_lookup_elem(&directory, &zero);
	if (!serves || !directory_now)
		return 0;
	entry = lb_service_find(directory_now, ipv4, 0, 0);
	return entry && entry->serves & serves;
}

static __always_inline int lb_origin_is(const struct lb_origin *origin, const struct lb_addr *addr, __be16 port,
					__u8 proto)
{
	return origin->port == port && origin->proto == proto && lb_addr_equal(&origin->addr, addr);
}

static __always_inline struct lb_origin *lb_origin_find(void *directory_now, const struct lb_addr *addr, __be16 port,
							 __u8 proto)
{
	__u64 hash = lb_hash_endpoint(addr, port, proto, lb_settings.key[0], lb_settings.key[1]);
	__u32 first = lb_settings.service_buckets + lb_scale(hash >> 32, lb_settings.origins);
	__u32 second = lb_settings.service_buckets + lb_scale(hash, lb_settings.origins);
	struct lb_origin *origin = bpf_map_lookup_elem(directory_now, &first);

	if (!origin)
		return NULL;
	if (lb_origin_is(origin, addr, port, proto))
		return origin;
	if (!origin->proto)
		return NULL;
	origin = bpf_map_lookup_elem(directory_now, &second);
	return origin && lb_origin_is(origin, addr, port, proto) ? origin : NULL;
}

#endif
