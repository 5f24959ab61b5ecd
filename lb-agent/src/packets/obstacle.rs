//! What is told of whatever is in the way of packets.

/// Something that is in the way, and what helps.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Obstacle {
    /// What is wrong.
    pub what: String,
    /// What somebody can do about it.
    pub remedy: String,
}
