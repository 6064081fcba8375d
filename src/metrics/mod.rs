//! What a running instance does, in figures: read from its tables, so that it can be read without the instance too.

mod report;
mod snapshot;

pub use report::render;
pub use snapshot::{BackendFigures, ReasonFigures, ServiceFigures, Snapshot};
