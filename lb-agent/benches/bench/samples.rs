//! Many measurements of one thing.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Values in the unit of whoever took them.
#[derive(Clone, Default, Deserialize, Serialize)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    pub(crate) fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Element by element.
    pub(crate) fn minus(&self, other: &Self) -> Self {
        Self(self.0.iter().zip(&other.0).map(|(a, b)| a - b).collect())
    }

    pub(crate) fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// Half of the interval in which the true median is in 95 of 100 cases: the notch of a box plot
    /// (McGill, Tukey, Larsen, 1978).
    #[expect(clippy::cast_precision_loss, reason = "a few hundred")]
    pub(crate) fn uncertainty(&self) -> f64 {
        let quartiles = self.quantile(0.75) - self.quantile(0.25);
        1.57 * quartiles / (self.0.len() as f64).sqrt()
    }

    /// The value below which this part of all values lies; not a number if there are none.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        clippy::cast_sign_loss,
        reason = "an index of a few thousand"
    )]
    pub(crate) fn quantile(&self, part: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
        sorted[(part * last as f64).round() as usize]
    }
}

/// The spread: minimum, quartiles, 90 %, maximum.
impl fmt::Display for Samples {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = f.precision().unwrap_or(0);
        for part in [0.0, 0.25, 0.5, 0.75, 0.9, 1.0] {
            write!(f, " {:8.digits$}", self.quantile(part))?;
        }
        Ok(())
    }
}

/// Heading of the columns that [`Samples`] prints.
pub(crate) const SPREAD: &str = "     min      25%   median      75%      90%      max";

/// `yes` or `NO`: whether an aim is met.
pub(crate) fn verdict(met: bool) -> &'static str {
    if met { "yes" } else { "NO" }
}
