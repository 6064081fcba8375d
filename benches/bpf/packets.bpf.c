// SPDX-License-Identifier: GPL-2.0-only
/* What is run in front of the program that is measured, and what it is measured against.
 *
 * A test run restores nothing between its repeats: the frame stays translated. So each repeat writes the headers anew, for
 * the next client of the plan, and then jumps into the program of slot 0, as it was loaded. A tail call costs 0.3 ns and
 * leaves the whole stack to the program. The same in front of the base program gives what is to be subtracted.
 */
#include "vmlinux.h"
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "checksum.h"

char LICENSE[] SEC("license") = "GPL";

#define BENCH_CLIENT_NET 0x40000000	/* 64.0.0.0/4 */
#define BENCH_CLIENT_BITS 0x0fffffff
#define BENCH_FIRST_PORT 1024
#define BENCH_WALK_PORT 40000

enum bench_draw {
	BENCH_COUNT = 0,	/* each packet is the next client's */
	BENCH_RANDOM = 1,	/* any of the first `clients`, each as likely */
	BENCH_WALK = 2,		/* the first `clients` in turn, each time by another port */
};

/* packets.rs writes it, field after field. */
struct bench_plan {
	__u64 next;
	__u64 random;
	__u32 clients;
	__u32 draw;		/* enum bench_draw */
	__u32 backend_mask;	/* of a reply: client i has backend i & this */
	__u8 reply;
	__u8 tcp;
	__u8 partial;		/* the transport checksum is left to the device */
	__u8 reserved;
	__u64 headers[7];	/* of a client 0.0.0.0:0 and the first backend; the first 54 bytes count */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct bench_plan);
} bench_plans SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} bench_programs SEC(".maps");

const volatile __u32 bench_out_ifindex = 20;	/* the lab's interface towards backends */

__u64 bench_received;

struct bench_headers {
	struct ethhdr eth;
	struct iphdr ip;
	union {
		struct tcphdr tcp;
		struct udphdr udp;
	};
} __attribute__((packed));

_Static_assert(sizeof(struct bench_headers) == 54, "what is written anew for each packet");

struct bench_client {
	__be32 addr;
	__be16 port;
	__u32 index;
};

/* Odd factors make every client another address; there is no list to look into, which would cost cache lines. */
static __always_inline struct bench_client bench_next(struct bench_plan *plan)
{
	__u64 turn = plan->next++;
	struct bench_client client;
	__u32 port;

	client.index = turn;
	port = BENCH_FIRST_PORT + ((client.index * 0x85ebca6b) >> 17);
	if (plan->draw == BENCH_RANDOM) {
		plan->random = plan->random * 6364136223846793005ULL + 1442695040888963407ULL;
		client.index = (plan->random >> 32) * plan->clients >> 32;
		port = BENCH_FIRST_PORT + ((client.index * 0x85ebca6b) >> 17);
	} else if (plan->draw == BENCH_WALK) {
		client.index = turn % plan->clients;
		port = BENCH_WALK_PORT + turn / plan->clients;
	}
	client.addr = bpf_htonl(BENCH_CLIENT_NET | (client.index * 0x9e3779b1 & BENCH_CLIENT_BITS));
	client.port = bpf_htons(port);
	return client;
}

static __always_inline __u16 bench_transport_check(const struct bench_plan *plan, __u16 check, __u64 addr_diff,
						   __u64 port_diff)
{
	if (plan->partial)
		return lb_csum_fold(check + addr_diff);
	return lb_csum_update(check, addr_diff + port_diff);
}

static __always_inline void bench_stamp(struct bench_headers *to, struct bench_plan *plan)
{
	struct bench_client client = bench_next(plan);
	__u64 addr_diff = lb_csum_diff32(0, client.addr), port_diff = lb_csum_diff16(0, client.port);
	__u64 *words = (void *)to;

#pragma unroll
	for (int i = 0; i < 6; i++)
		words[i] = plan->headers[i];
	*(__u32 *)&words[6] = plan->headers[6];
	*(__u16 *)((void *)&words[6] + 4) = plan->headers[6] >> 32;
	if (plan->reply) {
		__be32 backend = bpf_htonl(bpf_ntohl(to->ip.saddr) + (client.index & plan->backend_mask));

		addr_diff += lb_csum_diff32(to->ip.saddr, backend);
		to->ip.saddr = backend;
		to->ip.daddr = client.addr;
		to->udp.dest = client.port;
	} else {
		to->ip.saddr = client.addr;
		to->udp.source = client.port;
	}
	to->ip.check = lb_csum_update(to->ip.check, addr_diff);
	if (plan->tcp)
		to->tcp.check = bench_transport_check(plan, to->tcp.check, addr_diff, port_diff);
	else
		to->udp.check = bench_transport_check(plan, to->udp.check, addr_diff, port_diff);
}

static __always_inline int bench_stamp_next(struct xdp_md *ctx)
{
	struct bench_headers *headers = (void *)(long)ctx->data;
	struct bench_plan *plan;
	__u32 zero = 0;

	plan = bpf_map_lookup_elem(&bench_plans, &zero);
	if (!plan || (void *)(headers + 1) > (void *)(long)ctx->data_end)
		return -1;
	bench_stamp(headers, plan);
	return 0;
}

SEC("xdp")
int bench_packet(struct xdp_md *ctx)
{
	if (!bench_stamp_next(ctx))
		bpf_tail_call(ctx, &bench_programs, 0);
	return XDP_ABORTED;
}

/* Live: out of the interface that the frame is said to have come in by. */
SEC("xdp")
int bench_send(struct xdp_md *ctx)
{
	return bench_stamp_next(ctx) ? XDP_ABORTED : XDP_TX;
}

/* Live, and what the balancer is compared with. */
SEC("xdp")
int bench_redirect(struct xdp_md *ctx)
{
	(void)ctx;
	return bpf_redirect(bench_out_ifindex, 0);
}

/* Live, at the end of the way. One CPU sends, and so one counts. */
SEC("xdp")
int bench_sink(struct xdp_md *ctx)
{
	(void)ctx;
	bench_received++;
	return XDP_DROP;
}

/* The least that a program which forwards a packet does: parse it, swap the MACs, send it back. */
SEC("xdp")
int bench_base(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;
	struct iphdr *ip = (void *)(eth + 1);
	struct udphdr *udp;
	__u8 mac[6];

	if ((void *)(ip + 1) > end || eth->h_proto != bpf_htons(0x0800) || ip->version != 4 || ip->ihl < 5)
		return XDP_DROP;
	if (ip->protocol != IPPROTO_TCP && ip->protocol != IPPROTO_UDP)
		return XDP_DROP;
	udp = (void *)ip + ip->ihl * 4;
	if ((void *)(udp + 1) > end || !udp->dest)
		return XDP_DROP;
	__builtin_memcpy(mac, eth->h_dest, sizeof(mac));
	__builtin_memcpy(eth->h_dest, eth->h_source, sizeof(mac));
	__builtin_memcpy(eth->h_source, mac, sizeof(mac));
	return XDP_TX;
}
