// SPDX-License-Identifier: GPL-2.0-only
/* xdp-lb: balances TCP and UDP connections to virtual addresses over backends, replies included.
 *
 *	parse -> service? -- yes --> connection? -- hit ----------------------> next hop -> translate -> TX / redirect
 *	           |                     '-- miss -> admit -> select -> insert ----^
 *	           no -> from a backend of a service? -> connection? -> next hop -> translate back -> TX / redirect
 *	           no -> XDP_PASS, byte for byte untouched
 *
 * Each step returns a reason (lb_counters.h), LB_CONTINUE while the packet is still on its way; the exit counts it.
 */
#include "vmlinux.h"
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "lb_types.h"
#include "lb_hash.h"
#include "access.h"
#include "maps.h"
#include "checksum.h"
#include "parse.h"
#include "service.h"
#include "events.h"
#include "explain.h"
#include "conn.h"
#include "nexthop.h"
#include "partial.h"
#include "answers.h"
#include "nat.h"
#include "affinity.h"
#include "least.h"
#include "select.h"
#include "forward.h"
#include "reply.h"
#include "watch.h"
#include "stats.h"

char LICENSE[] SEC("license") = "GPL";

/* Whose frame it is: a client's if there is an entry of a service, a backend's if there is an origin. Returns the reason
 * if it is nobody's.
 */
static __always_inline int lb_classify(struct xdp_md *ctx, struct lb_packet *pkt, struct lb_service_entry **entry,
				       struct lb_origin **origin)
{
	struct lb_addr source;
	void *directory_now;
	__u32 zero = 0;
	int reason;

	reason = lb_parse(ctx, pkt);
	if (reason >> LB_REASON_BITS == LB_CLASS_PASS)
		return reason;
	if (reason)
		return lb_vip_serves(pkt->ip->daddr, pkt->proto) ? reason : LB_PASS_NO_SERVICE;
	if (pkt->first_fragment && lb_vip_serves(pkt->ip->daddr, pkt->proto))
		return LB_DROP_FRAGMENT;
	directory_now = bpf_map_lookup_elem(&directory, &zero);
	if (!directory_now)
		return LB_PASS_NO_SERVICE;
	*entry = lb_service_find(directory_now, pkt->ip->daddr, pkt->dport, pkt->proto);
	if (*entry)
		return LB_CONTINUE;
	source = lb_addr_of_ipv4(pkt->ip->saddr);
	*origin = lb_origin_find(directory_now, &source, pkt->sport, pkt->proto);
	return *origin ? LB_CONTINUE : LB_PASS_NO_SERVICE;
}

SEC("xdp")
int xdp_lb(struct xdp_md *ctx)
{
	struct lb_service_entry *entry = NULL;
	struct lb_origin *origin = NULL;
	/* Not zeroed: the compiler would do that again before each of the parser's checks. */
	struct lb_packet pkt;
	int reason;

	lb_watch_begins(ctx);
	reason = lb_classify(ctx, &pkt, &entry, &origin);
	if (reason)
		return lb_exit_nobodys(ctx, &pkt, reason);
	lb_packet_is_ours(&pkt);
	pkt.now = lb_now();
	if (entry)
		return lb_exit(ctx, &pkt, lb_from_client(ctx, &pkt, entry->service));
	return lb_exit(ctx, &pkt, origin ? lb_from_backend(ctx, &pkt, origin) : LB_PASS_NO_SERVICE);
}
