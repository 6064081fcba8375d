//! What a running instance does, in figures: read from its tables, so that it can be read without the instance too; and served
//! to Prometheus, by a thread that never asks the main loop.

mod board;
mod collector;
mod connections;
mod exposition;
mod families;
mod report;
mod server;
mod snapshot;

pub use board::{Board, Names, names_of};
use collector::Collector;
pub use connections::{ConnectionFigures, Connections};
pub use families::{About, expose};
pub use report::render;
pub use server::Server;
pub use snapshot::{
    BackendFigures, CheckFigures, GoneFigures, HealthFigures, HistoryFigures, ReasonFigures, ServiceFigures,
    Snapshot, TableFigures,
};
