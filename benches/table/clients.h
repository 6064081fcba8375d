/* SPDX-License-Identifier: GPL-2.0-only */
/* Who connects: each serial number is another address and port. And chance, the same in each run. */
#ifndef TABLE_CLIENTS_H
#define TABLE_CLIENTS_H

static __u64 random_state;

static __u64 random64(void)
{
	__u64 z = random_state += 0x9e3779b97f4a7c15ULL;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ULL;
	z = (z ^ z >> 27) * 0x94d049bb133111ebULL;
	return z ^ z >> 31;
}

static __u64 random_below(__u64 n)
{
	return (unsigned __int128)random64() * n >> 64;
}

#define PORTS (65536 - 1024)

static __u64 key_of(__u64 serial, __u16 service)
{
	__u64 word = serial, mask = (1ULL << 48) - 1;
	__u32 hosts;

	switch (pattern) {
	case RANDOM:	/* a permutation of 48 bits */
		word = (word ^ args.seed << 24) * 0x9e3779b97f4a7c15ULL & mask;
		word = (word ^ word >> 24) * 0xbf58476d1ce4e5b9ULL & mask;
		word ^= word >> 24;
		return lb_conn_key(word, word >> 32, service);
	case SEQUENTIAL:	/* 10.0.0.0/16, each client with its next port in each round */
		hosts = 65536;
		break;
	default:	/* 192.0.2.0/24, the same; when the ports are through, the next service */
		hosts = 256;
	}
	word = serial % hosts + (hosts == 256 ? 0xc0000200 : 0x0a000000);
	serial /= hosts;
	return lb_conn_key(bpf_htonl(word), bpf_htons(1024 + serial % PORTS), service + serial / PORTS);
}

#endif
