//! Which of the distribution's kernels is meant: by the names of its packages.

use anyhow::{Result, bail};

/// Stands for the newest kernel that there is.
pub(super) const NEWEST: &str = "newest";

/// The kernel that `wanted` stands for: the newest of a series (`6.1`), the only one with a whole
/// version (`6.12.117`), or the newest of all. `names` are names of packages; what is returned is
/// what `uname -r` says in it.
pub(super) fn choose(wanted: &str, names: &[String], debian: &str) -> Result<String> {
    let kernels = names.iter().filter_map(|name| release(name, debian));
    let series = (wanted != NEWEST).then(|| numbers(wanted));
    let fits =
        |kernel: &&str| series.as_ref().is_none_or(|series| numbers(kernel).starts_with(series));
    if let Some(kernel) = kernels.clone().filter(fits).max_by_key(|kernel| numbers(kernel)) {
        return Ok(kernel.to_owned());
    }
    let mut there: Vec<_> = kernels.collect();
    there.sort_by_key(|kernel| numbers(kernel));
    there.dedup();
    bail!(
        "apt's sources have no kernel {wanted} for {debian}, only: {}. Add a source that has it to \
         apt's, or name another one by --kernel",
        if there.is_empty() { "none at all".to_owned() } else { there.join(", ") }
    )
}

/// The name of a kernel's package.
pub(super) fn package(release: &str) -> String {
    format!("linux-image-{release}")
}

/// The kernel in a package of that name: `6.1.0-56-amd64`. None for packages of other flavours, of
/// debug symbols, and for those that only depend on the newest one (`linux-image-6.12-amd64`).
fn release<'a>(name: &'a str, debian: &str) -> Option<&'a str> {
    let release = name.strip_prefix("linux-image-")?;
    let version = release.strip_suffix(debian)?.strip_suffix('-')?;
    let is_word = |part: &str| part.starts_with(|c: char| c.is_ascii_alphabetic());
    let is_kernel = version.matches('.').count() >= 2 && !version.split('-').any(is_word);
    is_kernel.then_some(release)
}

/// The series that a kernel is of: `6.1`.
pub(super) fn series(release: &str) -> String {
    let numbers: Vec<_> = numbers(release).iter().take(2).map(ToString::to_string).collect();
    numbers.join(".")
}

/// What kernels are ordered by: `6.12.117+deb12` is after `6.1.0-56`.
fn numbers(version: &str) -> Vec<u64> {
    version.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: &[&str] = &[
        "linux-image-6.1.0-56-amd64",
        "linux-image-6.1.0-56-amd64-dbg",
        "linux-image-6.1.0-57-cloud-amd64",
        "linux-image-6.1.0-57-rt-amd64",
        "linux-image-6.1.0-58-amd64-unsigned",
        "linux-image-6.1.0-9-amd64",
        "linux-image-6.12-amd64",
        "linux-image-6.12.117+deb12-amd64",
        "linux-image-6.12.99+deb12-amd64",
        "linux-image-amd64",
        "linux-image-6.12.200+deb12-arm64",
    ];

    fn chosen(wanted: &str) -> Result<String> {
        choose(wanted, &NAMES.iter().map(ToString::to_string).collect::<Vec<_>>(), "amd64")
    }

    #[test]
    fn the_newest_of_a_series_is_chosen_by_number() {
        assert_eq!(chosen("6.1").unwrap(), "6.1.0-56-amd64");
        assert_eq!(chosen("6.12").unwrap(), "6.12.117+deb12-amd64");
        assert_eq!(chosen(NEWEST).unwrap(), "6.12.117+deb12-amd64");
        assert_eq!(chosen("6.12.99").unwrap(), "6.12.99+deb12-amd64");
        assert_eq!(series("6.12.117+deb12-amd64"), "6.12");
        assert_eq!(package(&chosen("6.1").unwrap()), NAMES[0]);
    }

    #[test]
    fn who_asks_for_what_is_not_there_learns_what_is() {
        let error = chosen("6.6").unwrap_err().to_string();
        let list = "6.1.0-9-amd64, 6.1.0-56-amd64, 6.12.99+deb12-amd64, 6.12.117+deb12-amd64";
        assert!(error.contains(list), "{error}");
        let none = choose("6.6", &[], "arm64").unwrap_err().to_string();
        assert!(none.contains("none at all"), "{none}");
    }
}
