/* SPDX-License-Identifier: GPL-2.0-only */
/* Whether backends answer new connections: the control plane polls it, and checks at once a backend that does not.
 *
 * Plain loads and stores. What two CPUs lose to each other does not matter, and most backends answer: then a SYN-ACK
 * finds the one SYN of its own connection.
 */
#ifndef LB_ANSWERS_H
#define LB_ANSWERS_H

enum lb_answer {
	LB_ANSWER_AWAITED,	/* a SYN went out */
	LB_ANSWER_GIVEN,	/* a SYN-ACK came back */
	LB_ANSWER_REFUSED,	/* a RST did */
};

/* A function that the verifier checks once, on its own: only packets that open a connection come here. */
__noinline int lb_answer_note(__u32 backend, __u32 answer)
{
	struct lb_backend_answers *answers = bpf_map_lookup_elem(&backend_answers, &backend);

	if (!answers)
		return 0;
	if (answer == LB_ANSWER_AWAITED) {
		LB_WRITE_ONCE(answers->unanswered, LB_READ_ONCE(answers->unanswered) + 1);
	} else if (answer == LB_ANSWER_REFUSED) {
		LB_WRITE_ONCE(answers->refused, LB_READ_ONCE(answers->refused) + 1);
	} else if (LB_READ_ONCE(answers->unanswered) | LB_READ_ONCE(answers->refused)) {
		LB_WRITE_ONCE(answers->unanswered, 0);
		LB_WRITE_ONCE(answers->refused, 0);
	}
	return 0;
}

/* The client's packet made an entry. A FIN with it: no backend would answer. */
static __always_inline void lb_answer_awaited(const struct lb_packet *pkt, __u32 backend, __u64 hash)
{
	if ((pkt->tcp_flags & (LB_TCP_FIN | LB_TCP_SYN | LB_TCP_RST | LB_TCP_ACK)) != LB_TCP_SYN)
		return;
	lb_answer_note(backend, LB_ANSWER_AWAITED);
	lb_handshake_begins(hash, backend, pkt->now);
}

/* The backend's packet met an entry in this state. A RST that refuses a SYN acknowledges it; one without ACK answers what
 * was no SYN (RFC 9293, 3.10.7.1): a client whose connection came from elsewhere, which says nothing of this backend.
 */
static __always_inline void lb_answer_seen(const struct lb_packet *pkt, __u32 backend, __u64 key, __u64 state)
{
	__u8 flags = pkt->tcp_flags & (LB_TCP_SYN | LB_TCP_RST | LB_TCP_ACK);
	__u32 phase = lb_state_phase(state);

	if (flags == (LB_TCP_SYN | LB_TCP_ACK) && phase <= LB_PHASE_ANSWERED) {
		lb_answer_note(backend, LB_ANSWER_GIVEN);
		lb_handshake_ends(lb_conn_hash(key), backend);
	} else if (flags == (LB_TCP_RST | LB_TCP_ACK) && phase == LB_PHASE_UNCONFIRMED) {
		lb_answer_note(backend, LB_ANSWER_REFUSED);
	}
}

#endif
