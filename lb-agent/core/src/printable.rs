//! What others wrote (names, paths, what maps say), made harmless for terminals and logs: nothing in it
//! moves a cursor, hides text, turns its direction or begins a line of its own.
//!
//! Every text that leaves the agent or `lbctl` goes through here.

use std::{
    borrow::Cow,
    fmt::{self, Write as _},
    io,
};

/// Whether the character says how others are to be shown, rather than to be one.
const fn is_harmful(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e007f}')
}

/// A text without line breaks; harmful characters are written as Rust does: `\u{1b}`, `\n`.
#[derive(Clone, Copy, Debug)]
pub struct Printable<T>(pub T);

impl<T: fmt::Display> fmt::Display for Printable<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(Escaped { to: f, kept: None }, "{}", self.0)
    }
}

/// Writes on, but for harmful characters, of which one may be `kept`.
struct Escaped<'a, 'b> {
    to: &'a mut fmt::Formatter<'b>,
    kept: Option<char>,
}

impl fmt::Write for Escaped<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text;
        let kept = self.kept;
        while let Some((at, c)) =
            rest.char_indices().find(|(_, c)| is_harmful(*c) && Some(*c) != kept)
        {
            self.to.write_str(&rest[..at])?;
            match c {
                '\n' | '\r' | '\t' => write!(self.to, "{}", c.escape_default())?,
                _ => write!(self.to, "{}", c.escape_unicode())?,
            }
            rest = &rest[at + c.len_utf8()..];
        }
        self.to.write_str(rest)
    }
}

/// The same with line breaks.
struct Lines<'a>(&'a str);

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Escaped { to: f, kept: Some('\n') }.write_str(self.0)
    }
}

/// JSON that means the same, its harmful characters written as JSON does: `\u001b`. They can only be in
/// strings; line breaks between values stay.
pub fn json(text: &str) -> Cow<'_, str> {
    let is_bad = |c: char| is_harmful(c) && c != '\n';
    if !text.contains(is_bad) {
        return text.into();
    }
    let mut safe = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_bad(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                // A String takes everything.
                let _ = write!(safe, "\\u{unit:04x}");
            }
        } else {
            safe.push(c);
        }
    }
    safe.into()
}

/// Where lines of text are written to, or JSON: what is harmful in them becomes harmless. Whatever is
/// written must end between two characters, so buffers belong behind this one.
#[derive(Debug)]
pub struct Output<W> {
    to: W,
    is_json: bool,
}

impl<W: io::Write> Output<W> {
    /// Takes lines of text. JSON from [`json`] is such.
    pub const fn text(to: W) -> Self {
        Self { to, is_json: false }
    }

    /// Takes JSON.
    pub const fn json(to: W) -> Self {
        Self { to, is_json: true }
    }
}

impl<W: io::Write> io::Write for Output<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(bytes);
        if self.is_json {
            self.to.write_all(json(&text).as_bytes())?;
        } else {
            write!(self.to, "{}", Lines(&text))?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    const HOSTILE: &str = "a\u{1b}[31mb\u{7f}\u{9b}2J\u{202e}c\u{2066}\u{200b}\nd\t\u{e0041}é字";

    #[test]
    fn nothing_harmful_is_left() {
        let text = Printable(HOSTILE).to_string();
        assert_eq!(
            text,
            "a\\u{1b}[31mb\\u{7f}\\u{9b}2J\\u{202e}c\\u{2066}\\u{200b}\\nd\\t\\u{e0041}é字"
        );
        assert_eq!(Printable("plain – text").to_string(), "plain – text");
        for c in (0..=0x9f).filter_map(char::from_u32).chain('\u{2028}'..='\u{202e}') {
            let harmless = c == ' ' || c.is_ascii_graphic();
            assert_eq!(Printable(c).to_string() == c.to_string(), harmless, "{c:?}");
        }
    }

    #[test]
    fn json_means_the_same() {
        let value = serde_json::json!({ "k\u{202e}": HOSTILE });
        let text = serde_json::to_string_pretty(&value).unwrap();
        let safe = json(&text);
        assert!(!safe.contains(|c| is_harmful(c) && c != '\n'), "{safe:?}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&safe).unwrap(), value);
    }

    #[test]
    fn an_output_keeps_its_lines() {
        let written = |json: bool| {
            let mut bytes = Vec::new();
            let mut output = Output { to: &mut bytes, is_json: json };
            write!(output, "x\u{1b}\né\u{85}").unwrap();
            output.write_all(b"\xff").unwrap();
            String::from_utf8(bytes).unwrap()
        };
        assert_eq!(written(false), "x\\u{1b}\né\\u{85}\u{fffd}");
        assert_eq!(written(true), "x\\u001b\né\\u0085\u{fffd}");
    }
}
