// SPDX-License-Identifier: GPL-2.0-only
/* A source of packets for tests and benches: run by BPF_PROG_TEST_RUN in live-frames mode, it sends each frame to an
 * interface as if it had been received. And the far end of a veth that counts what comes of it.
 *
 * The kernel recycles the pages of a run as their last user left them: translated, with other MACs. So every frame's headers
 * are written anew, the checksums included. The payload is the caller's, zeros, and nobody writes to it.
 */
#include "vmlinux.h"
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "lb_types.h"
#include "lb_hash.h"
#include "checksum.h"

char LICENSE[] SEC("license") = "GPL";

#define GENERATOR_TUPLES 4096
#define GENERATOR_ETH_P_IP 0x0800
#define GENERATOR_TCP_ACK 0x10

enum generator_order {
	GENERATOR_COUNTING = 0,		/* one client after the other, and again */
	GENERATOR_RANDOM = 1,
	GENERATOR_LISTED = 2,		/* the rows of generator_tuples, one after the other, and again */
};

/* What to send. generator.rs writes the same, and compares the size. */
struct generator_plan {
	__u64 next;		/* number of the next frame; counted up here */
	__u64 seed;
	__u64 clients;		/* how many addresses and ports; of the list: how many rows */
	__u64 due;		/* when the next frame may be sent */
	__u32 first_address;	/* in host order */
	__u32 ports;		/* of each address, from first_port up */
	__u32 target;		/* in host order */
	__u32 ifindex;		/* where to; 0: by XDP_TX out of the interface that the run names */
	__u32 pause;		/* ns from one frame to the next; 0: none */
	__u32 lag;		/* with `after`: how many frames of the first kind later */
	__u16 first_port;
	__u16 target_port;
	__u8 order;
	__u8 proto;
	__u8 flags;		/* of TCP */
	__u8 after;		/* not 0: every other frame has these flags and an earlier client */
	__u8 tos;		/* by which others tell these frames */
	__u8 mac_to[6];
	__u8 mac_from[6];
	__u8 reserved[3];
};

struct generator_tuple {
	__u32 address;		/* in host order */
	__u16 port;
	__u16 reserved;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct generator_plan);
} generator_plan SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, GENERATOR_TUPLES);
	__type(key, __u32);
	__type(value, struct generator_tuple);
} generator_tuples SEC(".maps");

static __always_inline struct generator_tuple generator_client(struct generator_plan *plan, __u64 number)
{
	struct generator_tuple client = {}, *listed;
	__u32 row;

	if (plan->order == GENERATOR_RANDOM)
		number = lb_hash(number, plan->seed, ~plan->seed);
	number %= plan->clients;
	if (plan->order == GENERATOR_LISTED) {
		row = number;
		listed = bpf_map_lookup_elem(&generator_tuples, &row);
		return listed ? *listed : client;
	}
	client.address = plan->first_address + number / plan->ports;
	client.port = plan->first_port + number % plan->ports;
	return client;
}

static __always_inline void generator_tcp(struct generator_plan *plan, struct iphdr *ip, struct tcphdr *tcp,
					  struct generator_tuple client, __u64 number, __u8 flags)
{
	__u16 bytes = bpf_ntohs(ip->tot_len) - sizeof(*ip);
	__u32 *words = (void *)tcp;
	__u64 sum = lb_csum_pseudo(ip->saddr, ip->daddr, IPPROTO_TCP, bytes);

	words[0] = bpf_htons(client.port) | (__u32)bpf_htons(plan->target_port) << 16;
	/* Numbers that no backend expects, but by a chance of one in 2^32. */
	words[1] = lb_hash(number, ~plan->seed, plan->seed);
	words[2] = flags & GENERATOR_TCP_ACK ? words[1] * 2654435761U : 0;
	words[3] = bpf_htonl((__u32)sizeof(*tcp) / 4 << 28 | (__u32)flags << 16 | 0xffff);
	words[4] = 0;
	for (int i = 0; i < 4; i++)
		sum += words[i];
	tcp->check = ~lb_csum_fold(sum);
}

static __always_inline void generator_udp(struct generator_plan *plan, struct iphdr *ip, struct udphdr *udp,
					  struct generator_tuple client)
{
	udp->source = bpf_htons(client.port);
	udp->dest = bpf_htons(plan->target_port);
	udp->len = bpf_htons(bpf_ntohs(ip->tot_len) - sizeof(*ip));
	udp->check = 0;
}

static __always_inline void generator_ip(struct generator_plan *plan, struct iphdr *ip, struct generator_tuple client,
					 __u16 bytes)
{
	__u32 *words = (void *)ip;
	__u64 sum = 0;

	words[0] = bpf_htonl(0x45000000 | (__u32)plan->tos << 16 | bytes);
	words[1] = 0;
	words[2] = bpf_htonl(64U << 24 | (__u32)plan->proto << 16);
	words[3] = bpf_htonl(client.address);
	words[4] = bpf_htonl(plan->target);
	for (int i = 0; i < 5; i++)
		sum += words[i];
	ip->check = ~lb_csum_fold(sum);
}

#define GENERATOR_PAUSE_STEPS 512	/* of some 30 ns */

/* Else a veth's ring, which real clients need too, is always full. */
static __always_inline void generator_wait(struct generator_plan *plan)
{
	__u64 now = bpf_ktime_get_ns();

	for (int i = 0; i < GENERATOR_PAUSE_STEPS && now < plan->due; i++)
		now = bpf_ktime_get_ns();
	plan->due = now + plan->pause;
}

SEC("xdp")
int generator(struct xdp_md *ctx)
{
	struct ethhdr *eth = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	struct iphdr *ip = (void *)(eth + 1);
	struct tcphdr *tcp = (void *)(ip + 1);
	struct udphdr *udp = (void *)(ip + 1);
	struct generator_tuple client;
	struct generator_plan *plan;
	__u64 number, which;
	__u32 zero = 0;
	__u8 flags;

	plan = bpf_map_lookup_elem(&generator_plan, &zero);
	if (!plan || !plan->clients || !plan->ports || (void *)(udp + 1) > end)
		return XDP_ABORTED;
	if (plan->pause)
		generator_wait(plan);
	number = plan->next++;
	which = number;
	flags = plan->flags;
	if (plan->after) {
		which = number / 2;
		if (number & 1) {
			which -= plan->lag;
			flags = plan->after;
		}
	}
	client = generator_client(plan, which);
	__builtin_memcpy(eth->h_dest, plan->mac_to, sizeof(eth->h_dest));
	__builtin_memcpy(eth->h_source, plan->mac_from, sizeof(eth->h_source));
	eth->h_proto = bpf_htons(GENERATOR_ETH_P_IP);
	generator_ip(plan, ip, client, (long)end - (long)ip);
	if (plan->proto == IPPROTO_UDP)
		generator_udp(plan, ip, udp, client);
	else if ((void *)(tcp + 1) <= end)
		generator_tcp(plan, ip, tcp, client, number, flags);
	else
		return XDP_ABORTED;
	return plan->ifindex ? bpf_redirect(plan->ifindex, 0) : XDP_TX;
}
