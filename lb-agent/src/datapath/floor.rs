//! What is said where a kernel takes no maps or programs of ours: whether it is too old, and what to
//! do.

/// The oldest kernel on which socklb is tested.
const FLOOR: (u32, u32) = (6, 1);

/// `what` the kernel does not do, and which kernel it is.
pub(super) fn on_this_kernel(what: &str) -> String {
    let release = nix::sys::utsname::uname()
        .map_or_else(|_| "?".to_owned(), |uts| uts.release().to_string_lossy().into_owned());
    on(what, &release)
}

fn on(what: &str, release: &str) -> String {
    let (major, minor) = FLOOR;
    if is_older(release) {
        format!(
            "{what}: this node runs Linux {release}, and socklb needs {major}.{minor} or later (the \
             5.14 of RHEL 9 and the 5.15 of Ubuntu 22.04 are too old): boot a newer kernel, or keep \
             kube-proxy on this node and let no agent run there"
        )
    } else {
        format!("{what} (Linux {release})")
    }
}

fn is_older(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) < FLOOR,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_compared_as_numbers() {
        for (release, older) in [
            ("5.14.0-503.el9.x86_64", true),
            ("5.15.0-91-generic", true),
            ("6.0.19", true),
            ("6.1.0-13-amd64", false),
            ("6.18.44-fc-v595", false),
            ("10.0", false),
            ("custom", false),
        ] {
            assert_eq!(is_older(release), older, "{release}");
        }
    }

    #[test]
    fn who_has_an_old_kernel_learns_which_what_is_needed_and_what_to_do() {
        let refused = "the kernel refuses the program connect4";
        let old = on(refused, "5.15.0-91-generic");
        for word in [refused, "5.15.0-91-generic", "6.1 or later", "kube-proxy"] {
            assert!(old.contains(word), "{old}");
        }
        assert_eq!(on(refused, "6.12.1"), format!("{refused} (Linux 6.12.1)"));
    }
}
