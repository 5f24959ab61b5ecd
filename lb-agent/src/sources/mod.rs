//! Where Services, EndpointSlices and Nodes come from: the API server, or a directory of files. What
//! addresses this machine has, [`local`] says.
//!
//! Both sources read the same Kubernetes objects and turn them into [`Change`]s by the same rules
//! ([`translate`]); nothing behind them knows a Kubernetes type.
//!
//! A source first says the whole of each list ([`Change::ListedServices`],
//! [`Change::ListedSlices`], [`Change::ListedNodes`]), and says it again whenever it may have missed
//! something.

pub mod dir;
pub mod kubernetes;
pub mod local;
mod problems;
pub mod translate;

use tokio::sync::{mpsc, watch};

pub use self::problems::{Problem, Problems};
use crate::model::Change;

/// Where a source sends what it learns. Bounded: a source that is faster than the maps waits.
pub type Changes = mpsc::Sender<Change>;

/// Where a source says why it follows nothing at the moment.
pub type Trouble = watch::Sender<Option<String>>;

/// How many changes may be under way between a source and the pipeline.
pub const BACKLOG: usize = 1024;
