//! What the tasks of both `xtask` and `lab` stand on: commands that are shown before they are run,
//! root, waiting, the pinned tools and how to get them. Nothing here knows what socklb is.

pub mod cache;
pub mod cargo;
pub mod exec;
pub mod help;
pub mod path;
pub mod pins;
pub mod root;
pub mod setup;
pub mod telling;
pub mod turn;
pub mod wait;
