//! From where sockets of each network namespace connect: what source ranges are asked about.

use std::{
    collections::BTreeMap,
    io::{self, Write},
};

use lb_common::abi::{ClientKey, SourceAddress};
use lb_core::dump::{API_VERSION, List};
use serde::Serialize;

use super::{once, write};
use crate::ctl::{
    cli::{Get, ListForm},
    json,
    table::TextTable,
    target::Target,
};

/// A client, as JSON has it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ClientItem {
    /// Cookie of the network namespace.
    netns: u64,
    /// 4 or 6.
    family: u32,
    /// The load balancer's address; null: any other.
    to: Option<String>,
    /// From where a socket without an address of its own connects.
    from: String,
    /// Also one that has a port already, and so cannot be bound any more.
    with_port: bool,
}

/// Those from or to one of the wanted addresses.
pub(super) fn clients(get: &Get, clients: &BTreeMap<ClientKey, SourceAddress>) -> List<ClientItem> {
    let wanted = |(key, client): &(&ClientKey, &SourceAddress)| {
        let is_at = |target: &Target| match target {
            Target::Address(at) => [key.to, client.addr].contains(&at.ip.into()),
            Target::Name(_) => false,
        };
        get.is_wanted(is_at)
    };
    let item = |(key, client): (&ClientKey, &SourceAddress)| ClientItem {
        netns: key.netns,
        family: if key.to.is_v4() { 4 } else { 6 },
        to: (!key.to.is_unspecified()).then(|| key.to.to_string()),
        from: client.addr.to_string(),
        with_port: client.flags & SourceAddress::SURE != 0,
    };
    let items = clients.iter().filter(wanted).map(item).collect();
    List { api_version: API_VERSION, kind: "ClientList", items }
}

pub(super) fn write_clients(
    get: &Get,
    list: &List<ClientItem>,
    out: &mut dyn Write,
) -> io::Result<()> {
    match get.output {
        Some(ListForm::Json) => return json(out, list),
        Some(ListForm::Name) => return once(list.items.iter().map(|i| i.from.clone()), out),
        Some(ListForm::Wide) | None => {}
    }
    let wide = get.output == Some(ListForm::Wide);
    let mut titles = vec!["CLIENT", "FAMILY", "TO", "FROM"];
    if wide {
        titles.push("WITH-PORT");
    }
    let mut table = TextTable::new(&titles);
    for item in &list.items {
        let mut row = vec![
            format!("netns {}", item.netns),
            format!("IPv{}", item.family),
            item.to.clone().unwrap_or_else(|| "any".to_owned()),
            item.from.clone(),
        ];
        if wide {
            row.push(if item.with_port { "yes" } else { "no" }.to_owned());
        }
        table.push(row);
    }
    write(get, &table, out, list.items.is_empty())
}
