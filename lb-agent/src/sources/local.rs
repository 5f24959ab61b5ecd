//! The addresses of this machine's interfaces, in the network namespace of the agent.
//!
//! The kernel says when an address comes or goes; then all of them are read. Should it ever forget to
//! say so, they are read now and then besides.

use std::{collections::BTreeSet, fs, io, net::IpAddr, os::fd::OwnedFd, time::Duration};

use anyhow::{Context as _, Result};
use lb_core::model::{Change, Families};
use nix::ifaddrs::getifaddrs;
use tokio::io::unix::AsyncFd;

use super::Changes;
use crate::netlink;

/// How often the addresses are read without any sign.
const RESCAN: Duration = Duration::from_secs(15);
/// From the first sign to the look at them: a burst of changes is one.
const SETTLE: Duration = Duration::from_millis(50);
/// `RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR`, see linux/rtnetlink.h.
const GROUPS: u32 = 0x10 | 0x100;

/// The addresses, as they are followed from now on.
pub struct Local {
    addresses: BTreeSet<IpAddr>,
    signs: Option<AsyncFd<OwnedFd>>,
}

impl Local {
    /// Reads the addresses and says them, so that all that follows is understood.
    pub async fn start(changes: &Changes) -> Result<Self> {
        // First the signs: no change goes unseen between the two.
        let signs = signs().inspect_err(|error| {
            tracing::warn!(%error, "changes of this machine's addresses are seen with a delay");
        });
        let addresses = addresses().context("cannot read this machine's addresses")?;
        // The receiver may be gone; then there is nobody to tell.
        let _gone = changes.send(Change::LocalAddresses(addresses.clone())).await;
        Ok(Self { addresses, signs: signs.ok() })
    }

    /// Follows them until the receiver is gone.
    pub async fn run(mut self, changes: Changes) {
        loop {
            tokio::select! {
                () = changes.closed() => return,
                () = sign(self.signs.as_ref()) => tokio::time::sleep(SETTLE).await,
                () = tokio::time::sleep(RESCAN) => {}
            }
            match addresses() {
                Ok(now) if now == self.addresses => {}
                Ok(now) => {
                    self.addresses.clone_from(&now);
                    if changes.send(Change::LocalAddresses(now)).await.is_err() {
                        return;
                    }
                }
                Err(error) => tracing::warn!(%error, "cannot read this machine's addresses"),
            }
        }
    }
}

/// All addresses of all interfaces that are up or not, loopback ones included.
pub fn addresses() -> io::Result<BTreeSet<IpAddr>> {
    let interfaces = getifaddrs()?;
    let addresses = interfaces.filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::from(v4.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::from(v6.ip())))
    });
    Ok(addresses.collect())
}

/// The families that the kernel has (J3).
pub fn families() -> Families {
    let disabled = fs::read_to_string("/proc/sys/net/ipv6/conf/all/disable_ipv6");
    let disabled = disabled.is_ok_and(|text| text.trim() == "1");
    let ipv6 = fs::exists("/proc/net/if_inet6").unwrap_or(false) && !disabled;
    Families { ipv4: true, ipv6 }
}

/// Where the kernel says that addresses change.
#[expect(unsafe_code, reason = "tokio takes a descriptor on trust")]
fn signs() -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is one open file as long as it lives, and nobody takes it out.
    Ok(unsafe { AsyncFd::register(netlink::signs(GROUPS)?) }?)
}

/// Waits for a sign; for ever if there is nobody to give one.
async fn sign(signs: Option<&AsyncFd<OwnedFd>>) {
    let Some(signs) = signs else { return std::future::pending().await };
    let Ok(mut ready) = signs.readable().await else { return std::future::pending().await };
    netlink::heard(signs.get_ref());
    ready.clear_ready();
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn the_first_list_is_said_before_anything_else() {
        let (sender, mut receiver) = mpsc::channel(4);
        let local = Local::start(&sender).await.unwrap();
        let Some(Change::LocalAddresses(said)) = receiver.recv().await else { panic!() };
        assert!(said.contains(&IpAddr::from([127, 0, 0, 1])), "{said:?}");
        assert!(local.signs.is_some(), "anybody may listen");
        let task = tokio::spawn(local.run(sender));
        drop(receiver);
        tokio::time::timeout(Duration::from_secs(30), task).await.unwrap().unwrap();
    }
}
