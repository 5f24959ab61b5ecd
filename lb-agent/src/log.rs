//! The log: which lines are written, how they look, and the last one.

mod fields;

use std::{error::Error, io, io::Write as _, panic, str::FromStr};

use anstream::{AutoStream, ColorChoice};
use clap::ValueEnum;
use lb_core::printable::Output;
use tracing_subscriber::{
    filter::{LevelFilter, Targets},
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

use self::fields::Fields;

/// Form of the log.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Format {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Which lines are written.
#[derive(Clone, Debug)]
pub struct Filter(Targets);

/// The crates that write lines, by the names that their targets begin with.
const CRATES: [&str; 13] = [
    "aya",
    "aya_log",
    "aya_obj",
    "hyper_rustls",
    "hyper_util",
    "jiff",
    "jiff_core",
    "kube_client",
    "kube_runtime",
    "lb_agent",
    "rustls",
    "tower",
    "tower_http",
];
/// The modules of lb-agent.
const MODULES: [&str; 18] = [
    "admin",
    "agent",
    "canary",
    "config",
    "ctl",
    "datapath",
    "host",
    "kube_proxy",
    "log",
    "maps",
    "mounts",
    "netlink",
    "node_cgroup",
    "packets",
    "pins",
    "sockets",
    "sources",
    "sysctls",
];

impl FromStr for Filter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // kube's own words say again what `sources::kubernetes` says.
        let quiet = [("kube_client", "off"), ("kube_runtime", "off")];
        let mut targets = Targets::new().with_default(LevelFilter::INFO);
        for (target, level) in quiet {
            targets = targets.with_target(target, self::level(level)?);
        }
        for directive in text.split(',').map(str::trim).filter(|directive| !directive.is_empty()) {
            targets = match directive.split_once('=') {
                None => targets.with_default(level(directive)?),
                Some((target, level)) => {
                    let (target, level) = (target.trim(), self::level(level.trim())?);
                    check(target)?;
                    targets.with_target(target, level)
                }
            };
        }
        Ok(Self(targets))
    }
}

fn level(text: &str) -> Result<LevelFilter, String> {
    let level = text.parse().ok().filter(|_| !text.is_empty());
    level.ok_or_else(|| {
        format!(
            "{text:?} is no level: use off, error, warn, info, debug or trace; by itself, or of a part \
             of lb-agent, as in `info,lb_agent::sources=debug`"
        )
    })
}

/// Whether there is such a target, as far as that can be known: of other crates and of modules in
/// modules it cannot.
fn check(target: &str) -> Result<(), String> {
    let mut parts = target.split("::");
    let of = parts.next().unwrap_or_default();
    if !CRATES.contains(&of) {
        return Err(format!("{of:?} is no part of lb-agent: use one of {}", CRATES.join(", ")));
    }
    match parts.next() {
        Some(module)
            if of == "lb_agent" && !MODULES.contains(&module) && !FORMER.contains(&module) =>
        {
            Err(format!("lb_agent has no module {module:?}: use one of {}", MODULES.join(", ")))
        }
        _ => Ok(()),
    }
}

/// Modules that were of lb-agent once, and write no lines: naming them does no harm.
const FORMER: [&str; 10] = [
    "addresses",
    "blocks",
    "claims",
    "dump",
    "model",
    "pipeline",
    "plan",
    "policy",
    "printable",
    "tables",
];

/// From here on there is a log, on stderr.
pub fn start(filter: &Filter, format: Format) {
    // A log that nobody can write is no reason to stop; telling so on stderr would panic.
    let log =
        tracing_subscriber::fmt().with_max_level(LevelFilter::TRACE).log_internal_errors(false);
    let Filter(targets) = filter.clone();
    match format {
        Format::Text => log
            .fmt_fields(Fields::default())
            .with_writer(io::stderr)
            // NO_COLOR, CLICOLOR, CLICOLOR_FORCE and TERM say otherwise than the terminal.
            .with_ansi(AutoStream::choice(&io::stderr()) != ColorChoice::Never)
            .with_target(false)
            .finish()
            .with(targets)
            .init(),
        Format::Json => {
            log.json().with_writer(stderr).finish().with(targets).init();
            panic::set_hook(Box::new(|panic| last(&panic.to_string())));
        }
    }
}

/// Says why the program ends, whatever the filter leaves out.
pub fn end(format: Format, error: &anyhow::Error) {
    let text = whole(error.as_ref());
    match format {
        Format::Text => {
            // Who reads no errors gets the code.
            let _ = writeln!(Output::text(io::stderr()), "error: {text}");
        }
        Format::Json => {
            last(&text);
        }
    }
}

/// A line of JSON, whatever the filter leaves out.
fn last(text: &str) {
    let log = tracing_subscriber::fmt().log_internal_errors(false).json();
    tracing::subscriber::with_default(log.with_writer(stderr).finish(), || {
        tracing::error!(target: "lb_agent", "{text}");
    });
}

fn stderr() -> Output<io::Stderr> {
    Output::json(io::stderr())
}

/// What the error says, with all that caused it: the outermost message alone names no cause. Some
/// messages have those of their causes in them, which are not said again.
pub fn whole(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use tracing::Level;

    use super::*;

    #[test]
    fn what_no_directive_names_is_written_at_info() {
        let filter = |text: &str| text.parse::<Filter>().unwrap().0;
        for (text, wanted) in [
            ("", [true, true, false]),
            ("warn", [true, false, false]),
            ("WARN", [true, false, false]),
            ("off", [false; 3]),
            ("3", [true, true, false]),
            (" debug , lb_agent::sources=off ", [true, true, true]),
            ("lb_agent::sources=trace", [true, true, false]),
            ("lb_agent=debug", [true; 3]),
            ("rustls::client::hs=debug", [true, true, false]),
        ] {
            let targets = filter(text);
            let enabled = [Level::WARN, Level::INFO, Level::DEBUG]
                .map(|level| targets.would_enable("lb_agent::agent", &level));
            assert_eq!(enabled, wanted, "{text}");
        }
        let targets = filter("debug");
        assert!(!targets.would_enable("kube_client::client", &Level::ERROR));
        assert!(filter("kube_client=info").would_enable("kube_client::client", &Level::INFO));
    }

    #[test]
    fn a_word_that_means_nothing_is_refused() {
        for (text, wanted) in [
            ("warning", "\"warning\" is no level: use off, error, warn"),
            ("inof", "\"inof\" is no level"),
            ("lb_agent", "\"lb_agent\" is no level"),
            ("info,lb_agent=foo", "\"foo\" is no level"),
            ("lb_agent=", "\"\" is no level"),
            ("lb-agent=debug", "\"lb-agent\" is no part of lb-agent: use one of aya,"),
            ("=debug", "\"\" is no part of lb-agent"),
            ("lb_agnet=debug", "\"lb_agnet\" is no part of lb-agent"),
            ("lb_agent::sorces=debug", "lb_agent has no module \"sorces\": use one of admin,"),
            ("lb_agent[span]=debug", "is no part of lb-agent"),
        ] {
            let error = text.parse::<Filter>().unwrap_err();
            assert!(error.contains(wanted), "{text}: {error}");
        }
    }

    /// What the chart lets through must not end the agent.
    #[test]
    fn the_chart_knows_the_same_crates() {
        let schema =
            concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/helm/socklb/values.schema.json");
        let schema = std::fs::read_to_string(schema).unwrap();
        assert_eq!(schema.matches(&format!("(({})(::", CRATES.join("|"))).count(), 2);
    }

    #[test]
    fn all_modules_can_be_named() {
        let modules = include_str!("lib.rs").lines().filter_map(|line| {
            let line = line.strip_prefix("pub ").unwrap_or(line);
            line.strip_prefix("mod ")?.strip_suffix(';')
        });
        assert_eq!(modules.collect::<BTreeSet<_>>(), MODULES.into());
    }

    /// Those that Cargo.lock has below lb-agent, and that log.
    #[test]
    fn all_crates_that_log_can_be_named() {
        const NOT_IN_IT: [&str; 7] = [
            // Of tests, and of other machines.
            "generator",
            "jni",
            "loom",
            "rustls-platform-verifier",
            // The log itself.
            "tracing",
            "tracing-serde",
            "tracing-subscriber",
        ];
        let mut packages: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for package in include_str!("../../Cargo.lock").split("[[package]]").skip(1) {
            let quoted = |line: &'static str| line.split('"').nth(1)?.split(' ').next();
            let mut lines = package.lines();
            let name = lines.find(|line| line.starts_with("name = ")).and_then(quoted).unwrap();
            let dependencies = lines.skip_while(|line| !line.starts_with("dependencies"));
            packages.entry(name).or_default().extend(dependencies.filter_map(quoted));
        }
        let (mut below, mut next) = (BTreeSet::new(), vec!["lb-agent"]);
        while let Some(name) = next.pop() {
            if below.insert(name) {
                next.extend(&packages[name]);
            }
        }
        below.retain(|name| {
            let mut of = packages[name].iter();
            of.any(|on| ["log", "tracing", "tracing-core"].contains(on))
                && !NOT_IN_IT.contains(name)
                && *name != "tracing-log"
        });
        let below: BTreeSet<String> = below.iter().map(|name| name.replace('-', "_")).collect();
        assert_eq!(below, CRATES.map(ToOwned::to_owned).into());
    }

    #[test]
    fn a_cause_is_said_once() {
        let cause = io::Error::other("no such file");
        let error =
            anyhow::Error::new(cause).context("cannot run x: no such file").context("no access");
        assert_eq!(whole(error.as_ref()), "no access: cannot run x: no such file");
    }
}
