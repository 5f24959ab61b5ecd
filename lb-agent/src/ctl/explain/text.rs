//! An [`Explanation`] for people.

use std::io::{self, Write};

use lb_common::Refusal;

use super::{
    ExplainedBackend, ExplainedClient, ExplainedService, ExplainedVerdict, Explanation, NodePort,
    full_name,
};
use crate::ctl::{packets, table::TextTable};

impl Explanation<'_> {
    pub(super) fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        self.write_connection(out)?;
        if let Some(error) = &self.packets_unread {
            writeln!(out, "\n{}", packets::unread(error))?;
        }
        self.packet.iter().try_for_each(|packet| writeln!(out, "\n{packet}"))
    }

    fn write_connection(&self, out: &mut dyn Write) -> io::Result<()> {
        let mut asked = format!("{}/{}", self.destination, self.protocol.to_ascii_lowercase());
        if let Some(meant) = &self.meant {
            asked.push_str(", which Linux takes for ");
            asked.push_str(meant);
            asked.push(',');
        }
        let Some(hit) = &self.service else {
            match self.verdict {
                ExplainedVerdict::Fail(refusal) => {
                    writeln!(out, "{asked}: {}", self.failure(refusal))?;
                }
                _ => writeln!(out, "{asked} is no Service's: connect() goes there untouched")?,
            }
            return self.write_nearby(out);
        };
        writeln!(
            out,
            "{asked} is {} (id {}, block {}, generation {})",
            full_name([hit.namespace, hit.name, hit.port]),
            hit.id,
            hit.block,
            hit.generation
        )?;
        self.write_scope(hit, out)?;
        self.write_source_ranges(hit, out)?;
        self.write_verdict(hit, out)?;
        if !hit.kept.is_empty() {
            let kept = hit.kept.join(", ");
            writeln!(out, "flows that are there already may stay with {kept}")?;
        }
        if self.candidates.is_empty() {
            return Ok(());
        }
        writeln!(out)?;
        let mut table = TextTable::new(&["BACKEND", "INDEX", "PROBABILITY"]);
        for ExplainedBackend { address, index, probability, .. } in &self.candidates {
            let address = address.clone().unwrap_or_else(|| "<damaged>".to_owned());
            let probability = format!("{:.1}%", probability * 100.0);
            table.push(vec![address, index.to_string(), probability]);
        }
        table.write(out, true)
    }

    /// Why which call fails, with what, and until when if that is known.
    fn failure(&self, refusal: Refusal) -> String {
        let (text, errno) = (refusal.text(), refusal.errno().name());
        let call = if self.connect_untouched {
            format!("sendto() fails with {errno}, connect() goes there untouched")
        } else {
            format!("connect() fails with {errno}")
        };
        let until = match refusal {
            Refusal::UnknownClient => ", until lb-agent has seen its network namespace",
            Refusal::Unstable => ", until lb-agent, at its next start, repairs the maps",
            _ => "",
        };
        format!("{text}: {call}{until}")
    }

    fn write_verdict(&self, hit: &ExplainedService<'_>, out: &mut dyn Write) -> io::Result<()> {
        match (self.verdict, self.candidates.len()) {
            (ExplainedVerdict::Fail(refusal), _) => {
                return writeln!(out, "{}", self.failure(refusal));
            }
            _ if self.bound.is_some() => {}
            (_, 1) => writeln!(out, "connect() goes to its only backend:")?,
            (_, count) => writeln!(out, "connect() goes to one of {count} backends:")?,
        }
        self.write_affinity(hit, out)
    }

    fn write_affinity(&self, hit: &ExplainedService<'_>, out: &mut dyn Write) -> io::Result<()> {
        let seconds = hit.affinity_seconds;
        if seconds == 0 {
            return Ok(());
        }
        write!(out, "a client stays for {seconds} s with the backend it got")?;
        match (&self.bound, self.client.as_ref().is_some_and(|client| client.netns.is_some())) {
            (Some(bound), _) => writeln!(
                out,
                "; this one with {}, which it used {} s ago",
                bound.address, bound.age_seconds
            ),
            (None, true) => writeln!(out, "; this one is free"),
            (None, false) => writeln!(out),
        }
    }

    fn write_source_ranges(
        &self,
        hit: &ExplainedService<'_>,
        out: &mut dyn Write,
    ) -> io::Result<()> {
        let Some(ranges) = &hit.source_ranges else { return Ok(()) };
        let ranges = ranges.join(", ");
        match &self.client {
            None => writeln!(
                out,
                "only clients in {ranges} may connect, others get EACCES (--from ADDR asks for one)"
            ),
            Some(ExplainedClient {
                address: Some(address), by_routing: true, with_port, ..
            }) => {
                writeln!(
                    out,
                    "only clients in {ranges} may connect; a socket of this network namespace that \
                     is not bound comes from {address}, by its routes"
                )?;
                if !with_port && self.verdict == ExplainedVerdict::Forward {
                    writeln!(
                        out,
                        "a socket that is bound to a port, but to no address, gets EACCES from \
                         connect(): there are several addresses, and it cannot be given one any more"
                    )?;
                }
                Ok(())
            }
            Some(ExplainedClient { address: Some(address), .. }) => {
                writeln!(out, "only clients in {ranges} may connect; this one comes from {address}")
            }
            Some(_) => writeln!(out, "only clients in {ranges} may connect"),
        }
    }

    fn write_nearby(&self, out: &mut dyn Write) -> io::Result<()> {
        let node_port = match self.node_port {
            Some(NodePort::HostOnly) => {
                "\na NodePort has this number, but at this address only for processes of the host's network \
                 namespace, where this client is not known to be (--from an address of the node, or --pid, \
                 asks for such a one):"
            }
            Some(NodePort::NotAtLoopback) => {
                "\na NodePort has this number, but NodePorts are not served at this loopback address: lb-agent \
                 serves them there with --localhost-nodeports, and if --nodeport-addresses names it; the \
                 addresses that `lbctl get addresses` calls own-node are served:"
            }
            Some(NodePort::NoNode) | None => {
                "\na NodePort has this number, but the address is none at which NodePorts are served (`lbctl \
                 get addresses`):"
            }
        };
        for (relation, title) in [
            ("frontend", "\nthe address is a Service's on other ports:"),
            ("backend", "\nit is a backend:"),
            ("nodePort", node_port),
        ] {
            let mut titles = Some(title);
            for near in self.nearby.iter().filter(|near| near.relation == relation) {
                if let Some(title) = titles.take() {
                    writeln!(out, "{title}")?;
                }
                let name = full_name([near.namespace, near.name, near.port]);
                writeln!(out, "  {} {name}", near.frontend)?;
            }
        }
        Ok(())
    }

    fn write_scope(&self, hit: &ExplainedService<'_>, out: &mut dyn Write) -> io::Result<()> {
        let port = hit.port_number;
        let client = self.client.as_ref().and_then(|client| client.address);
        match hit.scope {
            "ownNode" if hit.host_only => {
                writeln!(
                    out,
                    "it is NodePort {port} on this node, at an address that only processes of the host's \
                     network namespace have"
                )?;
                // A client that is known is told what it gets itself.
                if client.is_some() {
                    return Ok(());
                }
                writeln!(
                    out,
                    "a socket that is bound to such an address itself reaches only backends at this \
                     node's own addresses, else ECONNREFUSED (--from 127.0.0.1 asks for one)"
                )
            }
            "ownNode" => writeln!(out, "it is NodePort {port} on this node"),
            "otherNodes" => writeln!(out, "it is NodePort {port} on another node"),
            "node" => {
                writeln!(out, "it is NodePort {port} on another node, by that node's own endpoints")
            }
            _ => Ok(()),
        }
    }
}
