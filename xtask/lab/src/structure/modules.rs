//! Circles among modules that stand side by side. What a module of a directory uses of another one
//! there, be it by way of modules below, is an arrow between the two; what it uses of its own parent
//! is none.
//!
//! Read from the text: `use` declarations and paths that begin with `crate` or `super`, without
//! comments and tests.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::Path,
};

/// Where a module is: the names from the root of its crate.
type Module = Vec<String>;
/// To whom an arrow leads, and what is used there.
type Arrows = BTreeMap<String, BTreeMap<String, String>>;

/// The circles in the sources of a crate, a text for each.
pub(super) fn circles(sources: &Path) -> io::Result<Vec<String>> {
    let mut modules = BTreeMap::new();
    read(sources, sources, &mut modules)?;
    let mut levels: BTreeMap<Module, Arrows> = BTreeMap::new();
    for (module, text) in &modules {
        for path in paths(text) {
            let Some(target) = target(module, &path, &modules) else { continue };
            let common = module.iter().zip(&target).take_while(|(a, b)| a == b).count();
            if let (Some(from), Some(to)) = (module.get(common), target.get(common)) {
                let arrows = levels.entry(module[..common].to_vec()).or_default();
                arrows.entry(from.clone()).or_default().insert(to.clone(), path.join("::"));
            }
        }
    }
    let texts = levels.iter().flat_map(|(parent, arrows)| {
        around(arrows).into_iter().map(|circle| {
            let place = if parent.is_empty() { "the root".to_owned() } else { parent.join("::") };
            format!("a circle of modules in {place}: {circle}")
        })
    });
    Ok(texts.collect())
}

/// All modules below a directory but those of tests, each with its text.
fn read(root: &Path, directory: &Path, into: &mut BTreeMap<Module, String>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            read(root, &path, into)?;
        } else if let Some(module) = module(root, &path) {
            into.insert(module, fs::read_to_string(&path)?);
        }
    }
    Ok(())
}

fn module(root: &Path, file: &Path) -> Option<Module> {
    let below = file.strip_prefix(root).ok()?;
    if below.extension()? != "rs" || below.starts_with("bin") {
        return None;
    }
    let mut names: Module = Vec::new();
    for name in &below.with_extension("") {
        names.push(name.to_str()?.to_owned());
    }
    match names.last().map(String::as_str) {
        Some("tests") => return None,
        Some("mod") => _ = names.pop(),
        Some("lib" | "main") if names.len() == 1 => names.clear(),
        _ => {}
    }
    Some(names)
}

/// The paths in a text that begin with `crate`, `self` or `super`, each apart.
fn paths(text: &str) -> Vec<Vec<String>> {
    let code: String = text
        .lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .fold(String::new(), |code, line| code + line + "\n");
    let code = code.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    let mut found = Vec::new();
    let mut rest = code;
    while let Some((at, _)) = ["crate::", "super::", "self::"]
        .iter()
        .filter_map(|word| Some((rest.find(word)?, word)))
        .min_by_key(|(at, _)| *at)
    {
        let is_word = !rest[..at].ends_with(|c: char| c.is_alphanumeric() || "_:$".contains(c));
        let end = end_of_path(&rest[at..]);
        if is_word {
            leaves(&rest[at..at + end], &mut Vec::new(), &mut found);
        }
        rest = &rest[at + end.max(5)..];
    }
    found
}

/// How long a path is, with what stands in braces behind it.
fn end_of_path(text: &str) -> usize {
    let mut depth = 0_usize;
    for (at, c) in text.char_indices() {
        match c {
            '{' if depth > 0 || text[..at].ends_with("::") => depth += 1,
            '}' if depth > 0 => {
                depth -= 1;
                if depth == 0 {
                    return at + 1;
                }
            }
            _ if depth > 0 || c.is_alphanumeric() || "_:".contains(c) => {}
            _ => return at,
        }
    }
    text.len()
}

/// Takes `a::{b, c::d}` apart: `a::b`, `a::c::d`.
fn leaves(tree: &str, before: &mut Vec<String>, found: &mut Vec<Vec<String>>) {
    let Some((head, braces)) = tree.split_once('{') else {
        let name = tree.split(" as ").next().unwrap_or_default().trim();
        let names = name.split("::").map(|name| name.trim().to_owned());
        found.push(before.iter().cloned().chain(names).filter(|it| !it.is_empty()).collect());
        return;
    };
    let depth = before.len();
    before.extend(head.split("::").map(|it| it.trim().to_owned()).filter(|it| !it.is_empty()));
    let inner = braces.strip_suffix('}').unwrap_or(braces);
    let (mut open, mut start) = (0_usize, 0);
    for (at, c) in inner.char_indices() {
        match c {
            '{' => open += 1,
            '}' => open -= 1,
            ',' if open == 0 => {
                leaves(&inner[start..at], before, found);
                start = at + 1;
            }
            _ => {}
        }
    }
    if !inner[start..].trim().is_empty() {
        leaves(&inner[start..], before, found);
    }
    before.truncate(depth);
}

/// The module that a path in `from` leads to, or leads through last.
fn target(from: &Module, path: &[String], all: &BTreeMap<Module, String>) -> Option<Module> {
    let mut names = path.iter().map(String::as_str).peekable();
    let mut at = match names.next()? {
        "crate" => Module::new(),
        "self" => from.clone(),
        _ => from[..from.len().checked_sub(1)?].to_vec(),
    };
    while names.next_if_eq(&"super").is_some() {
        at.pop()?;
    }
    for name in names {
        at.push(name.to_owned());
        if !all.contains_key(&at) {
            at.pop();
            break;
        }
    }
    Some(at)
}

/// For each module that can be reached from itself: the shortest way round, once for each circle.
fn around(arrows: &Arrows) -> Vec<String> {
    let mut told: BTreeSet<&str> = BTreeSet::new();
    let mut texts = Vec::new();
    for start in arrows.keys() {
        if told.contains(start.as_str()) {
            continue;
        }
        if let Some(way) = way_back(arrows, start) {
            told.extend(&way);
            let next = way.iter().skip(1).copied().chain([start.as_str()]);
            let steps = way.iter().zip(next);
            let steps = steps.map(|(from, to)| format!("{from} → {to} ({})", arrows[*from][to]));
            texts.push(steps.collect::<Vec<_>>().join(", "));
        }
    }
    texts
}

fn way_back<'a>(arrows: &'a Arrows, start: &'a str) -> Option<Vec<&'a str>> {
    let mut ways = vec![vec![start]];
    let mut seen = BTreeSet::new();
    while !ways.is_empty() {
        let mut longer = Vec::new();
        for way in ways {
            let last = *way.last()?;
            for to in arrows.get(last).into_iter().flat_map(BTreeMap::keys) {
                if to == start {
                    return Some(way);
                }
                if seen.insert(to.as_str()) {
                    longer.push(way.iter().copied().chain([to.as_str()]).collect());
                }
            }
        }
        ways = longer;
    }
    None
}

#[cfg(test)]
mod tests {
    use std::{env, process::id};

    use super::*;

    fn found(name: &str, files: &[(&str, &str)]) -> Vec<String> {
        let root = env::temp_dir().join(format!("socklb-structure-{name}-{}", id()));
        for (file, text) in files {
            let file = root.join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        }
        let found = circles(&root);
        fs::remove_dir_all(&root).unwrap();
        found.unwrap()
    }

    #[test]
    fn a_circle_is_told_with_its_arrows() {
        let files = [
            ("lib.rs", "mod a; mod b; mod c;"),
            ("a.rs", "use crate::{d::{X, y as z}, c};"),
            ("b.rs", "mod below;"),
            ("b/below.rs", "fn f() { super::super::c::g() }"),
            ("c.rs", "// crate::b\nfn g() { crate::a::h() }"),
            ("d.rs", ""),
        ];
        assert_eq!(
            found("told", &files),
            ["a circle of modules in the root: a → c (crate::c), c → a (crate::a::h)"]
        );
    }

    #[test]
    fn what_is_none_is_not_told() {
        let files = [
            ("lib.rs", "mod a; mod b; pub use self::a::X;"),
            ("a.rs", "mod below; use self::below::Y; use crate::b::{self, X};"),
            ("a/below.rs", "use super::X; use super::super::b;"),
            ("b.rs", "struct X;\n#[cfg(test)]\nmod tests { use crate::a::X; }"),
            ("b/tests.rs", "use crate::a::X;"),
        ];
        assert_eq!(found("none", &files), [] as [&str; 0]);
    }

    #[test]
    fn siblings_below_count_by_themselves() {
        let files = [
            ("lib.rs", "mod a;"),
            ("a/mod.rs", "mod x; mod y;"),
            ("a/x.rs", "use super::y;"),
            ("a/y.rs", "use super::x::Thing;"),
        ];
        assert_eq!(
            found("below", &files),
            ["a circle of modules in a: x → y (super::y), y → x (super::x::Thing)"]
        );
    }
}
