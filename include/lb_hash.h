/* SPDX-License-Identifier: GPL-2.0-only */
/* The one hash: where a connection, a service and an origin lie, and which slot of a ring a client takes.
 *
 * Two multiply-xorshift rounds with a secret between them: 1.1 ns, and as good as an ideal hash on sequential clients,
 * /24 scans, single hosts and random ones. dataplane/hash.rs computes the same, a test compares them.
 */
#ifndef LB_HASH_H
#define LB_HASH_H

static __always_inline __u64 lb_hash(__u64 word, __u64 seed0, __u64 seed1)
{
	word ^= seed0;
	word ^= word >> 32;
	word *= 0xff51afd7ed558ccdULL;
	word ^= word >> 32;
	word += seed1;
	word *= 0xc4ceb9fe1a85ec53ULL;
	word ^= word >> 32;
	return word;
}

/* Of an address, a port and a protocol. What an IPv4 address leaves of the second half holds the other two; its first half
 * is 0, and costs nothing then.
 */
static __always_inline __u64 lb_hash_endpoint(const struct lb_addr *addr, __be16 port, __u8 proto, __u64 seed0,
					      __u64 seed1)
{
	__u64 word = addr->half[1] ^ ((__u64)port << 16 | proto);

	if (addr->half[0])
		word ^= lb_hash(addr->half[0], seed0, seed1);
	return lb_hash(word, seed0, seed1);
}

/* A hash half as an index below n, without a division and for any n. */
static __always_inline __u32 lb_scale(__u32 half, __u32 n)
{
	return (__u64)half * n >> 32;
}

#endif
