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
mod lasting;
pub mod local;
mod problems;
pub mod translate;

use std::collections::BTreeMap;

use lb_core::model::Change;
use tokio::sync::{mpsc, watch};

pub use self::problems::{Problem, Problems};

/// Where a source sends what it learns. Bounded: a source that is faster than the maps waits.
pub type Changes = mpsc::Sender<Change>;

/// Why a source follows nothing at the moment.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Standstill {
    /// What it waits for.
    pub what: String,
    /// Whether it waits for an answer that may never come. A new start may end that, and no other
    /// standstill.
    pub hangs: bool,
}

/// Where a source says that.
pub type Standstills = watch::Sender<Option<Standstill>>;

/// Where a source says what the first sync waits for, by what is lacking: a kind of objects, or files.
pub type Waits = watch::Sender<BTreeMap<&'static str, Wait>>;

/// Why something is lacking.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Wait {
    /// What went wrong, or what has not happened yet.
    pub why: String,
    /// What to do about it.
    pub remedy: String,
}

/// How many changes may be under way between a source and the pipeline.
pub const BACKLOG: usize = 1024;
