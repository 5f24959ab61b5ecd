//! A case: a file, and what it says.

use lb_agent::sources::dir::{Files, Listing};
use lb_core::{
    memory::Memory,
    model::Settings,
    pipeline::{NodeConfig, Pipeline},
    socket_engine::{SocketSettings, UnknownPorts},
    store::{Snapshot, Store},
};

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Section {
    Apply(String, String),
    Remove(String),
    Expect(Expected),
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Expected {
    /// What the maps say.
    pub(crate) maps: String,
    /// What packets from elsewhere get, if the case asks.
    pub(crate) outside: Option<String>,
    /// What is wrong.
    pub(crate) wrong: String,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Case {
    pub(crate) head: String,
    pub(crate) sections: Vec<Section>,
}

impl Case {
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut case = Self { head: String::new(), sections: Vec::new() };
        // The part of an expectation.
        let mut part = "";
        for (i, line) in text.lines().enumerate() {
            let title = line.strip_prefix("-- ").and_then(|rest| rest.strip_suffix(" --"));
            if let Some(title) = title {
                part = title;
                let section = match title.split_once(' ').unwrap_or((title, "")) {
                    ("apply", file) => Section::Apply(file.to_owned(), String::new()),
                    ("remove", file) => Section::Remove(file.to_owned()),
                    ("expect", "") => Section::Expect(Expected::default()),
                    ("outside" | "warn", "") => match case.sections.last_mut() {
                        Some(Section::Expect(expected)) if expected.wrong.is_empty() => {
                            if part == "outside" {
                                expected.outside.get_or_insert_default();
                            }
                            continue;
                        }
                        _ => return Err(format!("line {}: {line}", i + 1)),
                    },
                    _ => return Err(format!("line {}: {line}", i + 1)),
                };
                case.sections.push(section);
                continue;
            }
            let text = match case.sections.last_mut() {
                None => &mut case.head,
                Some(Section::Expect(expected)) => match part {
                    "warn" => &mut expected.wrong,
                    "outside" => expected.outside.get_or_insert_default(),
                    _ => &mut expected.maps,
                },
                Some(Section::Apply(_, text)) => text,
                Some(Section::Remove(_)) if line.is_empty() => continue,
                Some(Section::Remove(_)) => return Err(format!("line {}: {line}", i + 1)),
            };
            *text += line;
            text.push('\n');
        }
        Ok(case)
    }

    pub(crate) fn header(&self, key: &str) -> Option<&str> {
        let line = self.head.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(": "));
        line.map(str::trim)
    }

    fn size(&self, key: &str) -> u32 {
        self.header(key).map_or(1024, |size| size.parse().unwrap())
    }

    pub(crate) fn maps(&self) -> Memory {
        Memory::new(self.size("max-services"), self.size("max-backends"))
    }

    pub(crate) fn settings(&self) -> Settings {
        let node_name = self.header("node").unwrap_or_default().into();
        Settings { node_name, ..Settings::default() }
    }

    /// A pipeline on the case's node that goes on from what the maps say.
    pub(crate) fn pipeline<S: Store>(&self, store: S, snapshot: &Snapshot) -> Pipeline<S> {
        let unknown_ports = match self.header("unknown-ports") {
            Some("pass") => UnknownPorts::Pass,
            _ => UnknownPorts::Refuse,
        };
        Pipeline::with_config(
            NodeConfig {
                settings: self.settings(),
                sockets: SocketSettings { unknown_ports, ..SocketSettings::default() },
            },
            store,
            snapshot,
        )
    }

    pub(crate) fn print(&self) -> String {
        let mut text = self.head.clone();
        for section in &self.sections {
            text += &match section {
                Section::Apply(file, content) => format!("-- apply {file} --\n{content}"),
                Section::Remove(file) => format!("-- remove {file} --\n"),
                Section::Expect(Expected { maps, outside, wrong }) => {
                    let mut text = format!("-- expect --\n{maps}");
                    if let Some(outside) = outside {
                        text += &format!("-- outside --\n{outside}");
                    }
                    if !wrong.is_empty() {
                        text += &format!("-- warn --\n{wrong}");
                    }
                    text
                }
            };
        }
        text
    }

    /// The listings at the case's expectations, each with its number.
    pub(crate) fn steps(&self) -> Vec<Listing> {
        let mut files = Files::new(self.header("proxy-name").map(ToOwned::to_owned));
        let mut steps = Vec::new();
        for section in &self.sections {
            match section {
                Section::Apply(file, content) => files.put(file, content.as_bytes()),
                Section::Remove(file) => files.remove(file),
                Section::Expect(..) => steps.push(files.listing()),
            }
        }
        steps
    }
}
