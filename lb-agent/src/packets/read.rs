//! What stands in nf_tables.

use std::io;

use super::nft::{Attributes, Family, Message, NftError, Raw};
use crate::netlink::{Netlink, attributes};

/// Bytes before the attributes of an answer: `struct nfgenmsg`.
const HEAD: usize = 4;

/// A table that is there.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct TableInfo {
    pub(super) flags: u32,
    pub(super) comment: Option<String>,
}

/// The table of this name, if there is one.
pub(super) fn table(
    netlink: &mut Netlink,
    family: Family,
    name: &str,
) -> Result<Option<TableInfo>, NftError> {
    let mut found = TableInfo::default();
    let body = query(family, &Attributes::default().name(1, name));
    match netlink.ask(Message::GetTable.kind(), &body, |body| {
        for (kind, content) in attributes(body.get(HEAD..).unwrap_or_default()) {
            match kind {
                2 => found.flags = be32(content).unwrap_or_default(),
                6 => found.comment = comment(content),
                _ => {}
            }
        }
    }) {
        Ok(()) => Ok(Some(found)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// How many transactions there were.
pub(super) fn generation(netlink: &mut Netlink) -> io::Result<u32> {
    let mut found = None;
    netlink.ask(Message::GetGeneration.kind(), &[0; HEAD], |body| {
        let mut all = attributes(body.get(HEAD..).unwrap_or_default());
        found = all.find(|(kind, _)| *kind == 1).and_then(|(_, content)| be32(content));
    })?;
    found.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

/// The rules of a table in their order: the chain and the comment of each.
pub(super) fn rules(
    netlink: &mut Netlink,
    family: Family,
    table: &str,
) -> Result<Vec<(String, Option<String>)>, NftError> {
    let mut found = Vec::new();
    let body = query(family, &Attributes::default().name(1, table));
    dump(netlink, Message::GetRule, &body, |body| match body {
        None => found.clear(),
        Some(body) => {
            let mut rule = (String::new(), None);
            let mut is_ours = false;
            for (kind, content) in attributes(body) {
                match kind {
                    // Linux before 6.3 does not filter a dump by an attribute of another kind.
                    1 => is_ours = text(content) == table,
                    2 => rule.0 = text(content),
                    7 => rule.1 = comment(content),
                    _ => {}
                }
            }
            found.extend(is_ours.then_some(rule));
        }
    })?;
    Ok(found)
}

/// The chains of a family (`NFPROTO_*`) at the hook for what is forwarded that drop what they do not
/// accept: the table and the name of each.
pub(super) fn dropping_forward(
    netlink: &mut Netlink,
    family: u8,
) -> Result<Vec<[String; 2]>, NftError> {
    // NF_INET_FORWARD; NF_DROP.
    const FORWARD: u32 = 2;
    const DROP: u32 = 0;
    let mut found = Vec::new();
    let body = [family, 0, 0, 0];
    dump(netlink, Message::GetChain, &body, |body| match body {
        None => found.clear(),
        Some(body) => {
            let find = |body, wanted| {
                let found = attributes(body).find(|(kind, _)| *kind == wanted);
                found.map(|(_, content)| content)
            };
            let hook = find(body, 4).and_then(|hook| be32(find(hook, 1)?));
            let policy = find(body, 5).and_then(be32);
            if let (Some(FORWARD), Some(DROP), Some(table), Some(name)) =
                (hook, policy, find(body, 1), find(body, 3))
            {
                found.push([table, name].map(text));
            }
        }
    })?;
    Ok(found)
}

/// The elements of a set; none if there is no such set.
pub(super) fn elements(
    netlink: &mut Netlink,
    family: Family,
    (table, set): (&str, &str),
) -> Result<Option<Vec<Raw>>, NftError> {
    let mut found = Vec::new();
    let body = query(family, &Attributes::default().name(1, table).name(2, set));
    let whole = dump(netlink, Message::GetElements, &body, |body| match body {
        None => found.clear(),
        Some(body) => {
            let lists = attributes(body).filter(|(kind, _)| *kind == 3);
            let all = lists.flat_map(|(_, list)| attributes(list));
            found.extend(all.filter_map(|(_, element)| Raw::parse(element)));
        }
    });
    match whole {
        Ok(()) => Ok(Some(found)),
        Err(error) if error.errno() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// `each` gets the attributes of each message. EINTR if changes went through each attempt.
fn dump(
    netlink: &mut Netlink,
    message: Message,
    body: &[u8],
    mut each: impl FnMut(Option<&[u8]>),
) -> Result<(), NftError> {
    let each = |body: Option<&[u8]>| each(body.map(|body| body.get(HEAD..).unwrap_or_default()));
    if netlink.dump(message.kind(), body, each)? {
        return Ok(());
    }
    Err(io::Error::from_raw_os_error(libc::EINTR).into())
}

fn query(family: Family, body: &Attributes) -> Vec<u8> {
    [&[family.number(), 0, 0, 0], body.content()].concat()
}

fn comment(userdata: &[u8]) -> Option<String> {
    let [0, len, rest @ ..] = userdata else { return None };
    rest.get(..usize::from(*len)).map(text)
}

/// A name, as the kernel sends it.
pub(super) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.strip_suffix(&[0]).unwrap_or(bytes)).into_owned()
}

fn be32(bytes: &[u8]) -> Option<u32> {
    bytes.try_into().ok().map(u32::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::{super::nft::userdata, *};

    #[test]
    fn comments_are_read_as_they_are_written() {
        assert_eq!(comment(&userdata("ab")).as_deref(), Some("ab"));
        for other in [&[][..], &[0], &[1, 1, 0], &[0, 9, 1]] {
            assert_eq!(comment(other), None);
        }
    }
}
