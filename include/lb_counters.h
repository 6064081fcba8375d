/* SPDX-License-Identifier: GPL-2.0-only */
/* What can become of a packet: one list that is verdict, metric and text in one.
 *
 * A reason's number is part of the ABI of the pinned counters: append, never renumber or reuse. Columns: class, number
 * within the class (0-31), name in C, name shown to people, what it means. The program returns the reason, its exit
 * counts it and turns its class into the XDP verdict; build.rs expands the same list into Rust.
 */
#ifndef LB_COUNTERS_H
#define LB_COUNTERS_H

/* class: number, name in C, name in Rust */
#define LB_CLASSES(X)                                                                                                  \
	X(0, SENT, Sent)                                                                                               \
	X(1, STACK, Stack)                                                                                             \
	X(2, PASS, Pass)                                                                                               \
	X(3, DROP, Drop)                                                                                               \
	X(4, ERROR, Error)

/* clang-format off */
#define LB_REASONS(X)                                                                                                  \
	/* translated and sent by XDP */                                                                               \
	X(SENT,  1, TO_BACKEND,        to_backend,        "sent to a backend")                                         \
	X(SENT,  2, TO_CLIENT,         to_client,         "reply sent to its client")                                  \
	/* translated and handed to the kernel, which delivers it */                                                   \
	X(STACK, 1, TO_BACKEND,        to_backend,        "left to the kernel to deliver to a backend")                \
	X(STACK, 2, TO_CLIENT,         to_client,         "reply left to the kernel to deliver to its client")         \
	X(STACK, 3, NEIGHBOUR_UNKNOWN, neighbour_unknown, "left to the kernel: the next hop's MAC is not known yet")   \
	X(STACK, 4, ROUTE_BY_KERNEL,   route_by_kernel,   "left to the kernel: only it can tell or take the route")    \
	/* handed to the kernel untouched */                                                                           \
	X(PASS,  1, TRUNCATED,         truncated,         "ends before its addresses")                                 \
	X(PASS,  2, NOT_IPV4,          not_ipv4,          "is not IPv4")                                               \
	X(PASS,  3, MULTICAST,         multicast,         "has a group address as destination MAC")                    \
	X(PASS,  4, NO_SERVICE,        no_service,        "belongs to no service")                                     \
	X(PASS,  5, NO_CONNECTION,     no_connection,     "from a backend, of no balanced connection")                 \
	X(PASS,  6, WRONG_INTERFACE,   wrong_interface,   "from a backend's address on an interface not facing it")    \
	X(PASS,  7, NO_BACKEND,        no_backend,                                                                     \
	  "no backend takes new connections, and the service says on-empty = pass")                                    \
	/* dropped */                                                                                                  \
	X(DROP,  1, MALFORMED,         malformed,         "headers for a VIP contradict the frame or each other")      \
	X(DROP,  2, FRAGMENT,          fragment,          "a fragment of a balanced protocol")                         \
	X(DROP,  3, TTL,               ttl,               "the TTL does not allow another hop")                        \
	X(DROP,  4, NO_BACKEND,        no_backend,        "no backend takes new connections")                          \
	X(DROP,  5, TABLE_FULL,        table_full,        "no slot could be had in the connection table")              \
	X(DROP,  6, TUPLE_IN_USE,      tuple_in_use,      "the client talks to this backend through another service")  \
	X(DROP,  7, TOO_BIG,           too_big,           "larger than the next hop's MTU")                            \
	X(DROP,  8, RST_UNKNOWN,       rst_unknown,       "a RST for a connection that is not known")                  \
	X(DROP,  9, BAD_SOURCE,        bad_source,        "a source address that no client can have")                  \
	/* dropped, and a bug or a broken table if ever seen */                                                        \
	X(ERROR, 1, TABLES,            tables,            "a table's row names a row that does not exist")             \
	X(ERROR, 2, CHECKSUM,          checksum,          "the frame could not be read for its checksum")
/* clang-format on */

#endif
