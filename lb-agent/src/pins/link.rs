//! A pinned link: which program's it is, and which cgroup it leads to.

use std::{
    fs::{self, File},
    io,
    path::Path,
};

use aya::programs::links::{FdLink, LinkError, PinnedLink};

use super::PROGRAMS;

/// Why a pinned link could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenLinkError {
    /// There is no such pin, or no permission to open it.
    #[error(transparent)]
    Open(#[from] LinkError),
    /// The pin is something else.
    #[error("it is {0}; remove it, or remove all pins with `lb-agent --cleanup`")]
    Foreign(String),
}

/// Opens the pinned link of the program that the pin is named after. The second part is the id of
/// the cgroup it is attached to; 0 if that cgroup is gone.
///
/// What is pinned there may be anything: the kernel opens a map by the same call, and lets a program
/// be put into the link of another attach type, where it does harm.
pub fn open_link(path: &Path) -> Result<(FdLink, u64), OpenLinkError> {
    let foreign = |what: &str| OpenLinkError::Foreign(what.to_owned());
    let link: FdLink = PinnedLink::from_pin(path)?.into();
    let found = attachment(&link)?.ok_or_else(|| foreign("no link"))?;
    let Attachment { cgroup: Some(cgroup), attach_type: Some(attach_type) } = found else {
        return Err(foreign("no link to a cgroup"));
    };
    let program = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    if ATTACH_TYPES.iter().any(|(name, of)| *name == program && u64::from(*of) == attach_type) {
        Ok((link, cgroup))
    } else {
        Err(foreign(&format!("the link of another program (attach type {attach_type})")))
    }
}

/// The id of the cgroup that a link of ours is attached to; 0 if it is attached to none any more.
pub(crate) fn attached_to(link: &FdLink) -> Result<u64, LinkError> {
    Ok(attachment(link)?.and_then(|attachment| attachment.cgroup).unwrap_or(0))
}

/// What the kernel says of a link to a cgroup.
struct Attachment {
    cgroup: Option<u64>,
    attach_type: Option<u64>,
}

/// None if this is no link.
fn attachment(link: &FdLink) -> Result<Option<Attachment>, LinkError> {
    let id = link.info()?.id();
    Ok(fdinfo(|lines| {
        let field =
            |name: &str| lines.iter().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        (field("link_id:") == Some(u64::from(id)))
            .then(|| Attachment { cgroup: field("cgroup_id:"), attach_type: field("attach_type:") })
    }))
}

/// As in `linux/bpf.h`: `BPF_CGROUP_INET4_CONNECT` and so on.
pub(crate) const ATTACH_TYPES: [(&str, u32); PROGRAMS.len()] = [
    ("connect4", 10),
    ("connect6", 11),
    ("sendmsg4", 14),
    ("sendmsg6", 15),
    ("recvmsg4", 19),
    ("recvmsg6", 20),
    ("getpeername4", 29),
    ("getpeername6", 30),
];

/// What `wanted` finds in what the kernel says of a file of this process: aya keeps the descriptor
/// of a link to itself, and the kernel tells the cgroup only here.
fn fdinfo<T>(wanted: impl Fn(&[&str]) -> Option<T>) -> Option<T> {
    let entries = fs::read_dir("/proc/self/fdinfo").ok()?;
    entries.flatten().find_map(|entry| {
        let text = fs::read_to_string(entry.path()).ok()?;
        wanted(&text.lines().collect::<Vec<_>>())
    })
}

/// The id of a cgroup: the number of its directory's inode.
pub fn cgroup_id(cgroup: &File) -> io::Result<u64> {
    use std::os::unix::fs::MetadataExt as _;
    Ok(cgroup.metadata()?.ino())
}
