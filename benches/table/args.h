/* SPDX-License-Identifier: GPL-2.0-only */
/* The case that the simulation is to run, as its arguments say. */
#ifndef TABLE_ARGS_H
#define TABLE_ARGS_H

enum pattern { RANDOM, SEQUENTIAL, SCAN };

static const char *const patterns[] = { "random", "sequential", "scan" };

static struct {
	__u64 live;		/* connections, at all times */
	__u64 buckets;
	__u64 warm;		/* new connections before the counting begins */
	__u64 inserts;		/* new connections that are counted */
	__u64 seconds;		/* that all of this lasts */
	__u64 seed;
	__u64 half_open;	/* SYNs that nobody follows up, for each million slots and 10 s */
	__u64 handshake;	/* milliseconds; 0: a connection is confirmed at once */
	__u64 overflow;		/* connections without a slot go on, in a map of their own */
	__u64 timed;		/* look-ups and insertions to take the time of */
	__u64 fill;		/* fill the table with new connections, once, instead */
	__u64 stdin_map;	/* the table is the BPF map on stdin */
} args = { .seconds = 3600, .seed = 1 };
static enum pattern pattern;

static void die(const char *why)
{
	fprintf(stderr, "table: %s\n", why);
	exit(1);
}

static void read_args(int argc, char **argv)
{
	static const struct {
		const char *name;
		__u64 *value;
	} names[] = {
		{ "live", &args.live },		{ "buckets", &args.buckets },	  { "warm", &args.warm },
		{ "inserts", &args.inserts },	{ "seconds", &args.seconds },	  { "seed", &args.seed },
		{ "half_open", &args.half_open }, { "handshake", &args.handshake }, { "overflow", &args.overflow },
		{ "timed", &args.timed },	{ "fill", &args.fill },		  { "stdin_map", &args.stdin_map },
	};

	for (int i = 1; i < argc; i++) {
		char *value = strchr(argv[i], '=');
		int known = 0;

		if (!value)
			die("arguments are name=value");
		*value++ = 0;
		for (unsigned int n = 0; n < sizeof(names) / sizeof(*names); n++)
			if (!strcmp(argv[i], names[n].name)) {
				*names[n].value = strtoull(value, NULL, 10);
				known = 1;
			}
		for (enum pattern p = RANDOM; !strcmp(argv[i], "pattern") && p <= SCAN; p++)
			if (!strcmp(value, patterns[p])) {
				pattern = p;
				known = 1;
			}
		if (!known)
			die(argv[i]);
	}
	if (!args.buckets || (!args.fill && !args.live))
		die("live and buckets are needed");
}

#endif
