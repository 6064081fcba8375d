//! The lab and the frames of the packet table.

// That suite uses what this one does not.
#![allow(dead_code)]

#[path = "../packets/frame.rs"]
pub mod frame;
#[path = "../packets/lab.rs"]
pub mod lab;
