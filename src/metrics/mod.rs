//! What a running instance does, in figures: read from its tables, so that it can be read without the instance too.

mod connections;
mod report;
mod snapshot;

pub use connections::{ConnectionFigures, Connections};
pub use report::render;
pub use snapshot::{
    BackendFigures, CheckFigures, GoneFigures, HealthFigures, HistoryFigures, ReasonFigures, ServiceFigures,
    Snapshot, TableFigures,
};
