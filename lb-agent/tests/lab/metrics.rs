//! What a `/metrics` says.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use super::http::get;

#[derive(Debug)]
pub(crate) struct Metrics {
    /// `# HELP` and `# TYPE`, by name.
    said: BTreeMap<String, BTreeSet<String>>,
    /// By name and labels, which are sorted.
    values: BTreeMap<String, String>,
}

impl Metrics {
    pub(crate) fn of(address: SocketAddr) -> Self {
        let answer = get(address, "/metrics").expect("metrics");
        assert_eq!(answer.status, 200, "{answer:?}");
        let (mut said, mut values) = (BTreeMap::<_, BTreeSet<_>>::new(), BTreeMap::new());
        for line in answer.body.lines() {
            if let Some(text) = line.strip_prefix("# ") {
                let name = text.split(' ').nth(1).expect("a name").to_owned();
                said.entry(name).or_default().insert(text.to_owned());
            } else if let Some((key, value)) = line.rsplit_once(' ') {
                values.insert(sorted(key), value.to_owned());
            }
        }
        Self { said, values }
    }

    /// Its help and its type.
    pub(crate) fn said(&self, name: &str) -> &BTreeSet<String> {
        self.said.get(name).unwrap_or_else(|| panic!("no metric {name}"))
    }

    /// All keys that begin so: the series and, of a histogram, the buckets.
    pub(crate) fn series(&self, name: &str) -> BTreeSet<&str> {
        let of = |key: &&String| {
            let rest = key.strip_prefix(name);
            rest.is_some_and(|rest| {
                rest.is_empty()
                    || ["{", "_bucket", "_sum", "_count"].iter().any(|end| rest.starts_with(end))
            })
        };
        self.values.keys().filter(of).map(String::as_str).collect()
    }

    /// A series that counts; 0 if it is not there.
    pub(crate) fn count(&self, key: &str) -> u64 {
        self.values.get(key).map_or(0, |value| value.parse().expect("a whole number"))
    }

    /// A series that need not be whole.
    pub(crate) fn value(&self, key: &str) -> f64 {
        self.value_if_any(key).expect(key)
    }

    /// The same of a series that may not be there yet.
    pub(crate) fn value_if_any(&self, key: &str) -> Option<f64> {
        self.values.get(key).map(|value| value.parse().expect("a number"))
    }
}

/// The same labels in another order are the same series.
fn sorted(key: &str) -> String {
    let Some((name, labels)) = key.split_once('{') else { return key.to_owned() };
    let mut labels: Vec<_> = labels.trim_end_matches('}').split(',').collect();
    labels.sort_unstable();
    format!("{name}{{{}}}", labels.join(","))
}
