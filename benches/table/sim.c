// SPDX-License-Identifier: GPL-2.0-only
/* The connection table under pressure: the code of src/bpf/conn.h, compiled for user space, fills a table with connections
 * and lets them end and others come. One case a run, given as name=value; the result is one line of JSON.
 *
 * Everything follows from the arguments, the seed included: the same case gives the same counts each time.
 */
#include "user.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "args.h"
#include "clients.h"

#define HZ 250
#define CLOCK_SHIFT 6	/* as dataplane/clock.rs chooses it for this HZ */
#define KEEPALIVE 240	/* seconds within which each connection has a packet; the default timeout is 300 */
#define BACKEND 1
#define BATCH 32	/* so many memory accesses are under way at a time */
#define OVERFLOWED (1U << 31)	/* of a serial number: the connection is not in the table */
#define HALF_OPEN_SERVICE 0x8000

static struct counts {
	__u64 inserts, failed;			/* real connections */
	__u64 half_opens, half_open_failed;
	__u64 handshakes, handshakes_lost;	/* of real ones: their entry was given away before it was confirmed */
	__u64 lost;				/* live confirmed ones that are not found: never */
	__u64 overflow_sum, overflow_samples, overflow_peak;
} counts;

static __u32 *live;		/* serial numbers */
static __u64 next_serial, next_half_open, overflowed;
static const struct lb_backend backend;

/* --- what packets do --- */

static void refer(struct lb_conn_ref *ref, __u64 key)
{
	if (lb_conn_refer(ref, key))
		die("a bucket beyond the table");
}

static void prefetch(__u64 key)
{
	struct lb_conn_ref ref;

	refer(&ref, key);
	__builtin_prefetch(ref.first, 1);
	__builtin_prefetch(ref.second, 1);
}

/* A SYN, as lb_connect has it inserted. */
static int open_connection(__u64 key)
{
	struct lb_conn_ref ref;
	__u16 now = lb_now();
	__u64 state;

	refer(&ref, key);
	if (lb_conn_find(&ref, &state))
		die("a new client is in the table already");
	return lb_conn_insert(&ref, lb_state_new(BACKEND, ref.tag, IPPROTO_TCP, now), now) == LB_CONTINUE;
}

/* A packet of an entry that is there. Returns the phase before, or FREE if there is no entry. */
static __u32 packet(__u64 key, __u8 to_client, __u8 flags)
{
	struct lb_packet pkt = { .proto = IPPROTO_TCP, .tcp_flags = flags, .to_client = to_client, .now = lb_now() };
	struct lb_conn_ref ref;
	struct lb_conn *conn;
	__u64 state;

	refer(&ref, key);
	conn = lb_conn_find(&ref, &state);
	if (!conn)
		return LB_PHASE_FREE;
	lb_conn_update(conn, key, state, &pkt, &backend, 0);
	return lb_state_phase(state);
}

/* SYN-ACK and ACK. */
static int confirm(__u64 key)
{
	return packet(key, 1, LB_TCP_SYN | LB_TCP_ACK) && packet(key, 0, LB_TCP_ACK) == LB_PHASE_ANSWERED;
}

/* FINs of both. Returns 0 if the handshake is still under way. */
static int close_connection(__u32 serial)
{
	__u64 key = key_of(serial & ~OVERFLOWED, 1);
	__u32 phase;

	if (serial & OVERFLOWED) {
		overflowed--;
		return 1;
	}
	phase = packet(key, 0, LB_TCP_ACK);
	if (phase != LB_PHASE_ESTABLISHED && args.handshake)
		return 0;
	counts.lost += phase != LB_PHASE_ESTABLISHED;
	packet(key, 0, LB_TCP_FIN | LB_TCP_ACK);
	if (packet(key, 1, LB_TCP_FIN | LB_TCP_ACK) != LB_PHASE_CLOSING)
		counts.lost++;
	return 1;
}

/* --- handshakes under way, in the order of their SYNs --- */

static struct {
	__u64 *index;
	__u64 size, begin, end;
} handshakes;

static void connect(__u64 index);

static void handshake_ends(void)
{
	__u64 index = handshakes.index[handshakes.begin++ % handshakes.size];
	__u64 key = key_of(live[index], 1);

	counts.handshakes++;
	if (confirm(key))
		return;
	/* The client sends its SYN again. */
	counts.handshakes_lost++;
	if (open_connection(key) && confirm(key))
		return;
	counts.failed++;
	connect(index);
}

/* --- traffic --- */

/* A new connection takes place `index` among the live ones. One that finds no slot gives up, another client comes. */
static void connect(__u64 index)
{
	for (;;) {
		__u64 serial = next_serial++, key = key_of(serial, 1);

		if (serial >= OVERFLOWED)
			die("too many connections");
		counts.inserts++;
		live[index] = serial;
		if (open_connection(key)) {
			if (handshakes.size) {
				while (handshakes.end - handshakes.begin >= handshakes.size)
					handshake_ends();
				handshakes.index[handshakes.end++ % handshakes.size] = index;
			} else if (!confirm(key)) {
				die("an entry just made is not found");
			}
			return;
		}
		counts.failed++;
		if (args.overflow) {
			live[index] = serial | OVERFLOWED;
			overflowed++;
			return;
		}
	}
}

static void half_open(void)
{
	counts.half_opens++;
	prefetch(key_of(next_half_open + BATCH / 4, HALF_OPEN_SERVICE));
	counts.half_open_failed += !open_connection(key_of(next_half_open++, HALF_OPEN_SERVICE));
}

/* Packets of those whose turn has come. */
static void keep_alive(void)
{
	static __u64 kept;
	__u64 due = (double)user_jiffies / (KEEPALIVE * HZ) * args.live;

	while (kept < due) {
		__u64 end = kept + BATCH < due ? kept + BATCH : due;

		for (__u64 i = kept; i < end; i++)
			prefetch(key_of(live[i % args.live] & ~OVERFLOWED, 1));
		for (__u64 i = kept; i < end; i++) {
			__u32 serial = live[i % args.live];

			if (!(serial & OVERFLOWED) && !packet(key_of(serial, 1), 0, LB_TCP_ACK) && !args.handshake)
				counts.lost++;
		}
		kept = end;
	}
}

/* `n` connections end and others come, over `seconds`; all the others have a packet now and then. */
static void churn(__u64 n, double seconds)
{
	double half_opens = args.half_open * 1e-6 * args.buckets * LB_CONNS_PER_BUCKET / 10 * seconds;
	__u64 begin = user_jiffies, opened = 0, index[BATCH];

	for (__u64 done = 0; done < n; done += BATCH) {
		double share = (double)done / n;

		user_jiffies = begin + share * seconds * HZ;
		for (int i = 0; i < BATCH; i++) {
			index[i] = random_below(args.live);
			__builtin_prefetch(&live[index[i]], 1);
		}
		for (int i = 0; i < BATCH; i++) {
			prefetch(key_of(live[index[i]] & ~OVERFLOWED, 1));
			prefetch(key_of(next_serial + i, 1));
		}
		for (int i = 0; i < BATCH; i++) {
			while (!close_connection(live[index[i]]))
				index[i] = random_below(args.live);
			connect(index[i]);
		}
		while (opened < share * half_opens) {
			half_open();
			opened++;
		}
		keep_alive();
		counts.overflow_sum += overflowed;
		counts.overflow_samples++;
		if (overflowed > counts.overflow_peak)
			counts.overflow_peak = overflowed;
	}
	user_jiffies = begin + seconds * HZ;
	keep_alive();
}

/* --- cases --- */

static void *memory(__u64 bytes, int fd)
{
	void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED, fd, 0);

	if (at == MAP_FAILED)
		die("no memory");
	madvise(at, bytes, MADV_HUGEPAGE);
	return at;
}

static double nanoseconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
	return now.tv_sec * 1e9 + now.tv_nsec;
}

/* Each look-up waits for the one before. */
static double time_hits(void)
{
	struct lb_conn_ref ref;
	__u64 state = 0, at = 0;
	double begin = nanoseconds();

	for (__u64 i = 0; i < args.timed; i++) {
		at = (at + 1 + (state & LB_READ_ONCE(lb_opaque_zero))) % args.live;
		refer(&ref, key_of(live[at] & ~OVERFLOWED, 1));
		lb_conn_find(&ref, &state);
	}
	return (nanoseconds() - begin) / args.timed;
}

static double time_inserts(void)
{
	enum { AT_A_TIME = 4096 };
	double time = 0;
	__u64 timed = 0;

	while (timed < args.timed) {
		__u64 index[AT_A_TIME];

		for (int i = 0; i < AT_A_TIME; i++) {
			index[i] = (timed + i) * 0x9e3779b1ULL % args.live;
			close_connection(live[index[i]]);
			live[index[i]] = next_serial++;
		}
		time -= nanoseconds();
		for (int i = 0; i < AT_A_TIME; i++)
			if (!open_connection(key_of(live[index[i]], 1))) {
				live[index[i]] |= OVERFLOWED;
				overflowed++;
			}
		time += nanoseconds();
		for (int i = 0; i < AT_A_TIME; i++)
			if (!(live[index[i]] & OVERFLOWED))
				confirm(key_of(live[index[i]], 1));
		timed += AT_A_TIME;
	}
	return time / timed;
}

/* Every live connection is where it should be, and the table holds no other. */
static void audit(__u64 *in_second, __u64 *unconfirmed, __u64 *closed)
{
	struct lb_conn_ref ref;
	__u64 state, confirmed = 0;

	for (__u64 i = 0; i < args.live; i++) {
		struct lb_conn *conn;

		if (live[i] & OVERFLOWED)
			continue;
		refer(&ref, key_of(live[i], 1));
		conn = lb_conn_find(&ref, &state);
		if (!conn || lb_state_phase(state) != LB_PHASE_ESTABLISHED ||
		    lb_conn_rate(state, lb_now()) >> LB_RANK_SHIFT != LB_RANK_LIVE)
			counts.lost++;
		else if (ref.first != ref.second && conn >= ref.second->conn &&
			 conn < ref.second->conn + LB_CONNS_PER_BUCKET)
			++*in_second;
	}
	for (__u64 i = 0; i < args.buckets * LB_CONNS_PER_BUCKET; i++) {
		struct lb_conn *conn = &((struct lb_bucket *)connections.rows)->conn[i];
		__u32 rank = lb_conn_rate(conn->state, lb_now()) >> LB_RANK_SHIFT;

		confirmed += rank == LB_RANK_LIVE;
		*unconfirmed += rank == LB_RANK_UNCONFIRMED;
		*closed += rank == LB_RANK_CLOSED || rank == LB_RANK_EXPIRED;
	}
	if (confirmed != args.live - overflowed)
		die("the table holds live entries of nobody");
}

static void run_churn(void)
{
	__u64 in_second = 0, unconfirmed = 0, closed = 0, total = args.warm + args.inserts;
	double begin = nanoseconds(), seconds = (double)args.seconds / total, hit = 0, insert = 0, spent;
	__u64 failed_at_first;

	for (__u64 i = 0; i < args.live; i++) {
		if (i % BATCH == 0)
			for (int j = 0; j < BATCH; j++)
				prefetch(key_of(next_serial + j, 1));
		connect(i);
	}
	failed_at_first = counts.failed;
	churn(args.warm, seconds * args.warm);
	memset(&counts, 0, sizeof(counts));
	churn(args.inserts, seconds * args.inserts);
	while (handshakes.begin < handshakes.end)
		handshake_ends();
	spent = nanoseconds() - begin;
	if (args.timed) {
		hit = time_hits();
		insert = time_inserts();
	}
	audit(&in_second, &unconfirmed, &closed);
	printf("\"in_table\":%llu,\"failed_at_first\":%llu,\"inserts\":%llu,\"failed\":%llu,\"lost\":%llu,\"in_second\":%llu,"
	       "\"unconfirmed\":%llu,\"closed\":%llu,\"half_opens\":%llu,\"half_open_failed\":%llu,\"handshakes\":%llu,"
	       "\"handshakes_lost\":%llu,\"overflow_mean\":%.1f,\"overflow_peak\":%llu,\"hit_ns\":%.1f,\"insert_ns\":%.1f,"
	       "\"cpu_seconds\":%.1f",
	       args.live - overflowed, failed_at_first, counts.inserts, counts.failed, counts.lost, in_second, unconfirmed, closed,
	       counts.half_opens, counts.half_open_failed, counts.handshakes, counts.handshakes_lost,
	       counts.overflow_samples ? (double)counts.overflow_sum / counts.overflow_samples : 0,
	       counts.overflow_peak, hit, insert, spent / 1e9);
}

/* New connections only, as many as 95 % of the slots. */
static void run_fill(void)
{
	static const int steps[] = { 25, 29, 33, 40, 50, 60, 75, 85, 95 };
	__u64 slots = args.buckets * LB_CONNS_PER_BUCKET, first = 0, tried = 0;

	printf("\"fill\":[");
	for (unsigned int i = 0; i < sizeof(steps) / sizeof(*steps); i++) {
		for (; tried < slots * steps[i] / 100; tried++) {
			__u64 key = key_of(tried, 1);

			if (tried % BATCH == 0)
				for (int j = 0; j < BATCH; j++)
					prefetch(key_of(tried + j, 1));
			if (open_connection(key) && confirm(key))
				continue;
			if (!counts.failed++)
				first = tried;
		}
		printf("%s{\"load\":%d,\"tried\":%llu,\"failed\":%llu}", i ? "," : "", steps[i], tried, counts.failed);
	}
	printf("],\"first_failure\":%llu", first);
}

static __u16 units(__u32 seconds)
{
	return ((__u64)seconds * HZ + (1 << CLOCK_SHIFT) - 1) >> CLOCK_SHIFT;
}

static void set_up(void)
{
	__u16 *timeout = lb_settings.timeout;

	random_state = args.seed;
	lb_settings.clock_shift = CLOCK_SHIFT;
	lb_settings.hz = HZ;
	lb_settings.buckets = args.buckets;
	for (int i = 0; i < 4; i++)
		lb_settings.key[i] = random64();
	for (int i = 0; i < LB_TIMEOUT_SLOTS; i++)
		timeout[i] = 65535;
	/* The defaults, of TCP. */
	timeout[LB_PHASE_UNCONFIRMED] = timeout[LB_PHASE_ANSWERED] = units(10);
	timeout[LB_PHASE_ESTABLISHED] = units(300);
	timeout[LB_PHASE_CLOSING] = timeout[LB_PHASE_REVIVING] = units(30);
	timeout[LB_PHASE_CLAIMED] = units(5);
	connections.max_entries = args.buckets;
	connections.rows = memory(args.buckets * sizeof(struct lb_bucket), args.stdin_map ? 0 : -1);
	live = memory(args.live * sizeof(*live) + 1, -1);
	if (args.handshake) {
		handshakes.size = (args.warm + args.inserts) * args.handshake / 1000 / args.seconds + 1;
		handshakes.index = memory(handshakes.size * sizeof(*handshakes.index), -1);
	}
}

int main(int argc, char **argv)
{
	read_args(argc, argv);
	set_up();
	printf("{\"pattern\":\"%s\",\"live\":%llu,\"slots\":%llu,", patterns[pattern], args.live,
	       args.buckets * LB_CONNS_PER_BUCKET);
	if (args.fill)
		run_fill();
	else
		run_churn();
	printf(",\"now\":%u,\"key\":[%llu,%llu],\"timeout\":[", lb_now(), lb_settings.key[0], lb_settings.key[1]);
	for (int i = 0; i < LB_TIMEOUT_SLOTS; i++)
		printf("%s%u", i ? "," : "", lb_settings.timeout[i]);
	printf("]}\n");
	return 0;
}
