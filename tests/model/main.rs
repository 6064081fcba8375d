//! A reference model of the data plane: what docs/packets.md and docs/connections.md say, once more, in plain Rust.
//!
//! It is written from these documents and not from the program, slowly and obviously on purpose. What it gives for a
//! frame, byte for byte, and what it leaves in its tables is what the program has to do.

// The model: from what the control plane has put in place to what becomes of a packet.
mod affinity;
mod answers;
mod checksum;
mod client;
mod deliver;
mod events;
mod hash;
mod insert;
mod loads;
mod machine;
mod parse;
mod reason;
mod reply;
mod select;
mod state;
mod sweep;
mod table;
mod transitions;
mod way;
mod world;

// Tests of the model itself, against the documents.
mod affinity_tests;
mod answers_tests;
mod checksum_tests;
mod deliver_tests;
mod events_tests;
mod insert_tests;
mod lab;
mod loads_tests;
mod parse_tests;
mod path_tests;
mod random_tests;
mod select_tests;
mod sweep_tests;
mod table_tests;
mod transitions_tests;

// The comparison with the kernel program.
mod differential;
mod fuzz;
mod generate;
mod packets;
mod scenario;
mod sequence;
mod shrink;
