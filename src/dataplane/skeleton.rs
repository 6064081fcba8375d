//! What libbpf-cargo generated from the C programs, and which of its types may be read from bytes.

/// The balancer.
pub mod lb {
    include!(concat!(env!("OUT_DIR"), "/xdp_lb.skel.rs"));
}

/// The programs beside it.
pub mod peer {
    include!(concat!(env!("OUT_DIR"), "/xdp_peer.skel.rs"));
}

use lb::types;

macro_rules! plain {
    ($($row:ty),* $(,)?) => { $(
        // SAFETY: a C struct of integers without hidden padding (lb_types.h asserts its size): any bytes are a value.
        unsafe impl plain::Plain for $row {}
    )* };
}

plain!(
    types::lb_service_bucket,
    types::lb_origin,
    types::lb_service,
    types::lb_service_state,
    types::lb_ring_line,
    types::lb_backend,
    types::lb_backend_load,
    types::lb_backend_answers,
    types::lb_histogram,
    types::lb_backend_events,
    types::lb_backend_checks,
    types::lb_handshake,
    types::lb_history,
    types::lb_watch,
    types::lb_event,
    types::lb_explained,
    types::lb_affinity_key,
    types::lb_affinity,
    types::lb_nexthop,
    types::lb_neighbour_key,
    types::lb_unresolved,
    types::lb_egress,
    types::lb_bucket,
    types::lb_counter,
    types::lb_backend_counters,
    types::lb_settings,
);
