// SPDX-License-Identifier: GPL-2.0-only
/* Two programs beside the balancer.
 *
 * xdp_peer: frames that XDP sends out of a veth arrive only if the far end has a program too; this one passes all.
 * lb_clock: lets user space read jiffies, of which the connection table's clock is made, in the frame's first eight bytes;
 * it is run, never attached.
 */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "GPL";

SEC("xdp")
int xdp_peer(struct xdp_md *ctx)
{
	(void)ctx;
	return XDP_PASS;
}

SEC("xdp")
int lb_clock(struct xdp_md *ctx)
{
	__u64 *jiffies = (void *)(long)ctx->data;

	if ((void *)(jiffies + 1) > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	*jiffies = bpf_jiffies64();
	return XDP_PASS;
}
