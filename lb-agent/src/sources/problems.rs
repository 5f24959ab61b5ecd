//! What is wrong with an object, said once.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
};

/// One thing in one object that cannot be used. The rest of the object is used.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Problem {
    /// Path of the field: `spec.ports[0].port`.
    pub field: String,
    /// What is wrong with it.
    pub what: String,
    /// What follows from it, and what to do.
    pub remedy: String,
}

impl Problem {
    /// A problem with a field.
    pub fn new(
        field: impl Into<String>,
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { field: field.into(), what: what.into(), remedy: remedy.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.field, self.what, self.remedy)
    }
}

/// The problems known so far, by object: each is logged when it appears, and once more when it is
/// gone, however often the object is seen.
#[derive(Debug, Default)]
pub struct Problems(HashMap<String, Vec<Problem>>);

impl Problems {
    /// What is now known to be wrong with `object` (`Service default/web`, or a file).
    pub fn set(&mut self, object: &str, problems: Vec<Problem>) {
        let known = self.0.get(object).map_or(&[][..], Vec::as_slice);
        for problem in problems.iter().filter(|p| !known.contains(p)) {
            tracing::warn!("{object}: {problem}");
        }
        if problems.is_empty() {
            if self.0.remove(object).is_some() {
                tracing::info!("{object}: in order now");
            }
        } else {
            self.0.insert(object.to_owned(), problems);
        }
    }

    /// All that is now known to be wrong, by object. Of a directory: what is gone is not wrong.
    pub fn set_all(&mut self, all: BTreeMap<String, Vec<Problem>>) {
        self.0.retain(|object, _| {
            let is_wrong = all.contains_key(object);
            if !is_wrong {
                tracing::info!("{object}: in order now, or gone");
            }
            is_wrong
        });
        for (object, problems) in all {
            self.set(&object, problems);
        }
    }

    /// Whether something is wrong with the object.
    pub fn has(&self, object: &str) -> bool {
        self.0.contains_key(object)
    }

    /// All objects but these are gone, or in order.
    pub fn keep(&mut self, objects: &HashSet<String>) {
        self.0.retain(|object, _| objects.contains(object));
    }

    /// The object is gone, and its problems with it.
    pub fn forget(&mut self, object: &str) {
        self.0.remove(object);
    }
}
