//! Where the programs of this machine are.

use std::{env, path::PathBuf};

/// The file of a program.
pub fn find(program: &str) -> Option<PathBuf> {
    let mut path = env::var_os("PATH").unwrap_or_default();
    // Debian puts administrators' tools where a user's PATH does not look.
    path.push(":/usr/sbin:/sbin");
    find_in(env::split_paths(&path), program)
}

/// The file of a program in the first of the directories that has it.
pub fn find_in(directories: impl IntoIterator<Item = PathBuf>, program: &str) -> Option<PathBuf> {
    directories
        .into_iter()
        .map(|directory| directory.join(program))
        .find(|file| file.is_absolute() && file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_found_where_one_may_be_started() {
        assert!(find("sh").is_some_and(|path| path.is_absolute() && path.ends_with("sh")));
        assert_eq!(find("no-such-program"), None);
        assert_eq!(find_in(["bin".into(), "/bin".into()], "sh"), Some("/bin/sh".into()));
    }
}
