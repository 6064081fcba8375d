//! The admin socket with a made-up instance behind it: no root, no kernel.

mod instance;
mod requests;
mod socket;
