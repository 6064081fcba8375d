/* SPDX-License-Identifier: GPL-2.0-only */
/* Internet checksums (RFC 1071), updated incrementally (RFC 1624), and partial ones of local senders. */
#ifndef LB_CHECKSUM_H
#define LB_CHECKSUM_H

/* For sums below 2^48, which is 2^16 words of 32 bits: their carries are gone after the third step. */
static __always_inline __u16 lb_csum_fold(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

/* What replacing a word adds to a sum. */
static __always_inline __u64 lb_csum_diff32(__be32 old, __be32 new)
{
	return (__u64)(__u32)~old + new;
}

static __always_inline __u64 lb_csum_diff16(__be16 old, __be16 new)
{
	return (__u64)(__u16)~old + new;
}

/* RFC 1624, equation 3: HC' = ~(~HC + ~m + m'). */
static __always_inline __sum16 lb_csum_update(__sum16 check, __u64 diff)
{
	return ~lb_csum_fold((__u16)~check + diff);
}

static __always_inline __u64 lb_csum_pseudo(__be32 saddr, __be32 daddr, __u8 proto, __u16 len)
{
	return (__u64)saddr + daddr + bpf_htons(proto) + bpf_htons(len);
}

/* What is summed where it lies, without a copy: as much at a time as bpf_csum_diff takes, then less, and the rest by way of
 * the stack. The verifier follows offsets in a packet up to 65535, this size included.
 */
#define LB_CSUM_LARGE 512
#define LB_CSUM_MIDDLE 128
#define LB_CSUM_STRAIGHT 0x7fff

struct lb_csum_loop {
	struct xdp_md *ctx;
	__u32 offset;
	__u32 left;
	__u64 sum;
	__u32 failed;
};

/* The size must be a constant: the verifier knows of no other how far it may read from a packet. */
static __always_inline int lb_csum_straight(struct lb_csum_loop *loop, __u32 size)
{
	void *data = (void *)(long)loop->ctx->data, *end = (void *)(long)loop->ctx->data_end;
	__u32 offset = loop->offset;

	asm volatile("" : "+r"(offset));
	if (loop->left < size || offset > LB_CSUM_STRAIGHT || data + offset + size > end)
		return 0;
	loop->sum += (__u32)bpf_csum_diff(0, 0, data + offset, size, 0);
	loop->offset += size;
	loop->left -= size;
	return 1;
}

static long lb_csum_chunk(__u64 index, struct lb_csum_loop *loop)
{
	__u32 chunk[16] = {};
	__u32 n = loop->left;

	(void)index;
	if (lb_csum_straight(loop, LB_CSUM_LARGE) || lb_csum_straight(loop, LB_CSUM_MIDDLE))
		return !loop->left;
	if (n > sizeof(chunk))
		n = sizeof(chunk);
	if (!n)
		return 1;
	/* The compiler may know that n is in bounds where the verifier does not. */
	asm volatile("" : "+r"(n));
	if (n < 1 || n > sizeof(chunk) || bpf_xdp_load_bytes(loop->ctx, loop->offset, chunk, n)) {
		loop->failed = 1;
		return 1;
	}
	loop->sum += (__u32)bpf_csum_diff(0, 0, chunk, sizeof(chunk), 0);
	loop->offset += n;
	loop->left -= n;
	return !loop->left;
}

#define LB_CSUM_CHUNKS (65536 / 64)

/* Adds `left` bytes of the frame at `offset` to a sum; padding beyond the IP length never counts. Returns 0, or -1 if the
 * frame ends before the bytes do. A function of its own for the sake of its caller's stack.
 */
__noinline int lb_csum_add_bytes(struct xdp_md *ctx, __u32 offset, __u32 left, __u64 *sum)
{
	struct lb_csum_loop loop = { .ctx = ctx, .offset = offset, .left = left };

	if (!sum)
		return -1;
	loop.sum = *sum;
	bpf_loop(LB_CSUM_CHUNKS, lb_csum_chunk, &loop, 0);
	*sum = loop.sum;
	return loop.failed || loop.left ? -1 : 0;
}

/* Sums a segment whose checksum field, at `check_offset`, is 0, and stores the finished checksum there. Returns 0 or -1. */
static __always_inline int lb_csum_complete(struct xdp_md *ctx, __u32 offset, __u32 left, __u64 sum, __u32 check_offset,
					    __u8 proto)
{
	__sum16 check;

	if (lb_csum_add_bytes(ctx, offset, left, &sum))
		return -1;
	check = ~lb_csum_fold(sum);
	if (!check && proto == IPPROTO_UDP)
		check = 0xffff;
	return bpf_xdp_store_bytes(ctx, check_offset, &check, sizeof(check)) ? -1 : 0;
}

/* Whether a segment's checksum is finished, and right. */
static __always_inline int lb_csum_whole(struct xdp_md *ctx, __u32 offset, __u32 left, __u64 sum)
{
	return !lb_csum_add_bytes(ctx, offset, left, &sum) && lb_csum_fold(sum) == 0xffff;
}

#endif
