//! Whether the kernel still takes what is written to the maps. A Service that does not fit is that
//! Service's trouble; a map that takes nothing is the agent's: what it knows is in force no longer. Pure.

use std::collections::BTreeMap;

use crate::pipeline::Writes;

/// The maps that take nothing, and whether they can be read.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    /// Why, by the map. It stays until the map has taken something.
    maps: BTreeMap<&'static str, String>,
    /// Why what the maps say could not be compared.
    unread: Option<String>,
}

impl Refusals {
    /// After a sync. If it was `complete`, and so all that there is was there already or was written,
    /// nothing is refused any more.
    pub(super) fn wrote(&mut self, writes: &BTreeMap<&'static str, Writes>, complete: bool) {
        if complete {
            self.maps.clear();
        }
        for (map, writes) in writes {
            if writes.taken > 0 {
                self.maps.remove(map);
            } else if let Some(error) = &writes.refused {
                self.maps.insert(map, error.clone());
            }
        }
    }

    /// The maps were read, or why not.
    pub(super) fn read(&mut self, result: Result<(), String>) {
        self.unread = result.err();
    }

    /// What is wrong.
    pub(super) fn verdict(&self) -> Result<(), String> {
        let refused = self
            .maps
            .iter()
            .map(|(map, error)| format!("the kernel takes nothing for the map {map}: {error}"));
        let unread = self.unread.iter().map(|error| format!("the maps cannot be read: {error}"));
        let all: Vec<_> = refused.chain(unread).collect();
        if all.is_empty() { Ok(()) } else { Err(all.join("; ")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn writes(of: &[(&'static str, usize, Option<&str>)]) -> BTreeMap<&'static str, Writes> {
        let writes =
            |taken, refused: Option<&str>| Writes { taken, refused: refused.map(Into::into) };
        of.iter().map(|(map, taken, refused)| (*map, writes(*taken, *refused))).collect()
    }

    #[test]
    fn a_map_that_takes_nothing_is_a_fault_until_it_takes_something() {
        let mut refusals = Refusals::default();
        assert_eq!(refusals.verdict(), Ok(()));
        // Some of it was taken.
        refusals.wrote(&writes(&[("services", 1, Some("no memory")), ("names", 3, None)]), false);
        assert_eq!(refusals.verdict(), Ok(()));
        refusals.wrote(&writes(&[("services", 0, Some("no memory")), ("names", 3, None)]), false);
        let text = refusals.verdict().unwrap_err();
        assert_eq!(text, "the kernel takes nothing for the map services: no memory");
        // Nothing was tried, or something else was.
        refusals.wrote(&writes(&[]), false);
        refusals.wrote(&writes(&[("names", 1, None)]), false);
        assert_eq!(refusals.verdict().unwrap_err(), text);
        refusals.wrote(&writes(&[("services", 1, Some("no memory"))]), false);
        assert_eq!(refusals.verdict(), Ok(()));
    }

    /// What could not be written is not wanted any more: the Service is gone, or as it was.
    #[test]
    fn nothing_is_left_to_write() {
        let mut refusals = Refusals::default();
        refusals.wrote(&writes(&[("services", 0, Some("no memory"))]), false);
        refusals.wrote(&writes(&[]), true);
        assert_eq!(refusals.verdict(), Ok(()));
    }

    #[test]
    fn maps_that_cannot_be_read() {
        let mut refusals = Refusals::default();
        refusals.read(Err("no memory".into()));
        refusals.wrote(&writes(&[("names", 0, Some("not permitted"))]), false);
        let text = refusals.verdict().unwrap_err();
        assert_eq!(
            text,
            "the kernel takes nothing for the map names: not permitted; the maps cannot be read: no memory"
        );
        refusals.wrote(&writes(&[("names", 1, None)]), true);
        assert_eq!(refusals.verdict().unwrap_err(), "the maps cannot be read: no memory");
        refusals.read(Ok(()));
        assert_eq!(refusals.verdict(), Ok(()));
    }
}
