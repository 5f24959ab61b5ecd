//! Names, as an API server would have them: files, which nobody has looked at, may hold anything, and
//! names get into maps, logs and answers.

use super::Problem;

/// Which names there may be.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Sort {
    /// Of namespaces and Services (RFC 1123): `kube-dns`.
    Label,
    /// Of Nodes and EndpointSlices: labels with dots in between.
    Subdomain,
    /// What a label says, such as a zone: `eu_west.A`. Also of ports, for kube-proxy's own tests have
    /// capitals in theirs.
    Value,
    /// The node that an endpoint names: as long as a name, as free as a value. What is no Node's name
    /// is nobody's.
    NodeRef,
}

impl Sort {
    /// Most bytes of it. The names map has room for a label.
    const fn longest(self) -> usize {
        match self {
            Self::Label | Self::Value => 63,
            Self::Subdomain | Self::NodeRef => 253,
        }
    }

    fn allows(self, text: &str) -> bool {
        let is_inner = |b: u8| match self {
            Self::Label | Self::Subdomain => {
                b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'
            }
            Self::Value | Self::NodeRef => {
                b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.')
            }
        };
        let is_word = |word: &str| {
            word.bytes().all(is_inner)
                && [word.bytes().next(), word.bytes().next_back()]
                    .iter()
                    .all(|end| end.is_some_and(|b| b.is_ascii_alphanumeric()))
        };
        match self {
            Self::Subdomain => text.split('.').all(is_word),
            Self::Label | Self::Value | Self::NodeRef => is_word(text),
        }
    }

    const fn hint(self) -> &'static str {
        match self {
            Self::Label => "use lower-case letters, digits and inner '-'",
            Self::Subdomain => "use lower-case letters, digits and inner '-' and '.'",
            Self::Value | Self::NodeRef => "use letters, digits and inner '-', '_' and '.'",
        }
    }

    /// Whether a field may say this; `follows` is what follows if not.
    pub(super) fn check(self, field: &str, text: &str, follows: &str) -> Result<(), Problem> {
        let problem =
            |what: String, hint: &str| Err(Problem::new(field, what, format!("{follows}: {hint}")));
        if text.is_empty() {
            return problem("is empty".to_owned(), "name it");
        }
        if text.len() > self.longest() {
            let hint = format!("use at most {}", self.longest());
            return problem(format!("has {} characters", text.len()), &hint);
        }
        if !self.allows(text) {
            return problem(format!("{text:?} is no valid name"), self.hint());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_as_an_api_server_takes_them() {
        let long = "a".repeat(63);
        let dotted = format!("{long}.{long}");
        for (text, sorts) in [
            ("a", "lsv"),
            ("kube-dns", "lsv"),
            ("0", "lsv"),
            (&*long, "lsv"),
            (&*dotted, "s"),
            ("ip-10-0-0-1.eu.internal", "sv"),
            ("a..b", "v"),
            ("A", "v"),
            ("eu_west.A", "v"),
            ("", ""),
            ("-a", ""),
            ("a-", ""),
            ("a.", ""),
            (".a", ""),
            ("_a", ""),
            ("a b", ""),
            ("a/b", ""),
            ("é", ""),
            ("a\n", ""),
            ("\u{1b}[2J", ""),
            ("a\u{202e}b", ""),
        ] {
            for (sort, of) in [(Sort::Label, 'l'), (Sort::Subdomain, 's'), (Sort::Value, 'v')] {
                let checked = sort.check("f", text, "it is ignored");
                assert_eq!(checked.is_ok(), sorts.contains(of), "{sort:?} {text:?}: {checked:?}");
            }
        }
        let said = |sort: Sort, text: &str| {
            sort.check("metadata.name", text, "the object is ignored").unwrap_err().to_string()
        };
        assert_eq!(
            said(Sort::Label, "A\u{1b}"),
            "metadata.name: \"A\\u{1b}\" is no valid name; the object is ignored: use lower-case \
             letters, digits and inner '-'"
        );
        assert_eq!(
            said(Sort::Subdomain, &"a".repeat(254)),
            "metadata.name: has 254 characters; the object is ignored: use at most 253"
        );
        assert_eq!(
            said(Sort::Label, ""),
            "metadata.name: is empty; the object is ignored: name it"
        );
    }
}
