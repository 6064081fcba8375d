//! What can become of a packet, as in include/lb_counters.h.

use xdp_lb::dataplane;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    SentToBackend,
    SentToClient,
    StackToBackend,
    StackToClient,
    StackNeighbourUnknown,
    StackRouteByKernel,
    PassTruncated,
    PassNotIpv4,
    PassMulticast,
    PassNoService,
    PassNoConnection,
    PassWrongInterface,
    PassNoBackend,
    DropMalformed,
    DropFragment,
    DropTtl,
    DropNoBackend,
    DropTableFull,
    DropTupleInUse,
    DropTooBig,
    DropRstUnknown,
    DropBadSource,
    ErrorTables,
    ErrorChecksum,
}

use Reason::*;

/// In the order of the header. `error checksum` is here for the harness: the model can always read a segment.
pub const ALL: [(Reason, &str); 24] = [
    (SentToBackend, "sent to_backend"),
    (SentToClient, "sent to_client"),
    (StackToBackend, "stack to_backend"),
    (StackToClient, "stack to_client"),
    (StackNeighbourUnknown, "stack neighbour_unknown"),
    (StackRouteByKernel, "stack route_by_kernel"),
    (PassTruncated, "pass truncated"),
    (PassNotIpv4, "pass not_ipv4"),
    (PassMulticast, "pass multicast"),
    (PassNoService, "pass no_service"),
    (PassNoConnection, "pass no_connection"),
    (PassWrongInterface, "pass wrong_interface"),
    (PassNoBackend, "pass no_backend"),
    (DropMalformed, "drop malformed"),
    (DropFragment, "drop fragment"),
    (DropTtl, "drop ttl"),
    (DropNoBackend, "drop no_backend"),
    (DropTableFull, "drop table_full"),
    (DropTupleInUse, "drop tuple_in_use"),
    (DropTooBig, "drop too_big"),
    (DropRstUnknown, "drop rst_unknown"),
    (DropBadSource, "drop bad_source"),
    (ErrorTables, "error tables"),
    (ErrorChecksum, "error checksum"),
];

impl Reason {
    /// Class and name, like "drop ttl".
    pub fn name(self) -> &'static str {
        ALL.iter().find(|(reason, _)| *reason == self).expect("every reason is in the list").1
    }

    pub fn class(self) -> &'static str {
        self.name().split(' ').next().expect("a name begins with its class")
    }
}

#[test]
fn the_reasons_are_those_of_the_header() {
    let theirs: Vec<String> = dataplane::Reason::ALL
        .iter()
        .map(|reason| format!("{} {}", reason.class.name(), reason.name))
        .collect();
    let ours: Vec<&str> = ALL.iter().map(|(_, name)| *name).collect();
    assert_eq!(ours, theirs);
}
