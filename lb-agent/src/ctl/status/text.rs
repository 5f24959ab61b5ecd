//! A [`Status`] for people.

use std::io::{self, Write};

use super::{Status, others::Other};
use crate::ctl::{
    failure::Answer,
    packets,
    table::{NONE, TextTable, or_none},
};

impl Status {
    pub(super) fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let verdict = match self.answer {
            Answer::Yes => "healthy",
            Answer::Silent if !self.agent.hangs() => "unknown",
            _ => "degraded",
        };
        writeln!(out, "{verdict}")?;
        for problem in &self.problems {
            writeln!(out, "  {problem}")?;
        }
        writeln!(out)?;

        writeln!(out, "agent:   {}", self.agent)?;
        let live = self.live_maps.as_ref().and_then(|path| path.file_name());
        let live = live.map_or_else(|| NONE.into(), |name| name.to_string_lossy());
        writeln!(out, "pins:    {} (layout {}, {live})", self.pins.display(), self.layout)?;
        if let Some(cgroup) = &self.cgroup {
            writeln!(out, "cgroup:  {cgroup}")?;
        }
        if let Some(fill) = &self.packets {
            write!(out, "packets: {fill}")?;
            if let Some(when) = &self.agent.tables_repaired {
                write!(out, ", repaired {when}")?;
            }
            writeln!(out)?;
        } else if self.packets_unread.is_none() {
            writeln!(out, "packets: off (no table of socklb in nftables)")?;
        }
        if let Some(error) = &self.packets_unread {
            writeln!(out, "{}", packets::unread(error))?;
        }
        writeln!(out)?;

        let mut table = TextTable::new(&["PROGRAM", "STATE", "CGROUP"]);
        for program in &self.programs {
            let state = program.state.to_string();
            table.push(vec![program.name.to_owned(), state, program.cgroup_text()]);
        }
        table.write(out, true)?;
        if !self.maps.is_empty() {
            writeln!(out)?;
            let mut table = TextTable::new(&["MAP", "USED", "SIZE", "FILL"]);
            for fill in &self.maps {
                let ratio = percent(fill.ratio());
                let numbers = [fill.used.to_string(), fill.size.to_string(), ratio];
                table.push([fill.name.to_owned()].into_iter().chain(numbers).collect());
            }
            table.write(out, true)?;
        }

        if !self.counters.is_empty() {
            writeln!(out)?;
            let mut table = TextTable::new(&["COUNTER", "COUNT"]);
            for (name, count) in &self.counters {
                table.push(vec![(*name).to_owned(), count.to_string()]);
            }
            table.write(out, true)?;
        }
        if !self.others.is_empty() {
            writeln!(out, "\nother programs at the same hooks:")?;
            for Other { hook, name, program_id } in &self.others {
                let name = or_none(name);
                writeln!(out, "  another program on {hook}: {name} id {program_id}")?;
            }
        }
        Ok(())
    }
}

pub(super) fn percent(ratio: f64) -> String {
    format!("{:.1}%", ratio * 100.0)
}
