//! The packet table: frames in, and for each the verdict, the counted reason and every byte of the frame that must come
//! out, by `BPF_PROG_TEST_RUN` of the program as it is loaded for traffic.

mod affinity;
mod answers;
mod checksums;
mod delivery;
mod events;
mod forward;
mod frame;
mod kills;
mod lab;
mod lives;
mod loads;
mod refused;
mod reload;
mod replies;
mod states;
mod table;
