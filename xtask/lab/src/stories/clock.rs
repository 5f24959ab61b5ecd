//! What stories and the load tell the time by.

use std::time::{SystemTime, UNIX_EPOCH};

/// The time of day, in seconds, as the load says it.
pub(crate) fn unix() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}
