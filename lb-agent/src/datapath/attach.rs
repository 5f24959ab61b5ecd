//! Puts the programs to work: all of them, or none.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use aya::programs::{
    CgroupAttachMode, CgroupSockAddr, cgroup_sock_addr::CgroupSockAddrLink, links::FdLink,
};

use super::{Datapath, throw_away};
use crate::{
    maps::copy_bonds,
    pins::{self, PROGRAMS, shown},
};

/// Where a program is to work.
enum Seat {
    /// In the link that is pinned, and leads to the cgroup.
    Pinned(FdLink),
    /// In the link that another layout has pinned there, and that leads to the cgroup.
    Inherited(FdLink, PathBuf),
    /// In the link that we have, and that has lost its pin.
    Held,
    /// In a new link: attached, and gone with this value until it is pinned.
    New(FdLink),
}

impl Datapath {
    /// Puts the programs to work for the sockets of a cgroup and all below it. From here on the maps
    /// are those that the next agent goes on from.
    ///
    /// What fails, fails before anything that lasts is done: with new links there, and not yet pinned,
    /// all that is left is to name them, and to replace programs in links.
    pub fn attach(&mut self, cgroup: &Path) -> Result<()> {
        let dir = File::open(cgroup)
            .with_context(|| format!("cannot open the cgroup {}", cgroup.display()))?;
        let id = pins::cgroup_id(&dir)?;
        let failed =
            |name| move || format!("cannot attach the program {name} to {}", cgroup.display());
        let mut places = Vec::new();
        for name in PROGRAMS {
            places.push((name, self.place(name, &dir, id).with_context(failed(name))?));
        }
        let was_staged = self.staged;
        if self.staged {
            let staging = self.pins.staging();
            fs::rename(&staging, self.maps())
                .with_context(|| format!("cannot rename {}", shown(&staging).display()))?;
            self.staged = false;
        }
        let places = self.pin_new(places)?;
        for (name, place) in places {
            self.settle(name, place).with_context(failed(name))?;
        }
        if let Some(old) = self.replaced.take() {
            let old = self.pins.map_set(old);
            if was_staged {
                // Of the clients that came since they were copied.
                copy_bonds(&old, &self.maps()).unwrap_or_else(|error| {
                    tracing::warn!(%error, "not all clients stay with their backends");
                });
            }
            throw_away(&self.pins, &old)?;
        }
        if let Some(theirs) = self.late_bonds.take() {
            copy_bonds(&theirs, &self.maps()).unwrap_or_else(|error| {
                tracing::warn!(%error, "not all clients stay with their backends");
            });
        }
        for removed in self.pins.remove_other_layouts()? {
            tracing::info!(path = %removed.display(), "removed another version's pins");
        }
        Ok(())
    }

    /// Finds the place of a program, or makes one. Nothing that is at work changes.
    fn place(&mut self, name: &'static str, cgroup: &File, id: u64) -> Result<Seat> {
        let pin = self.pins.link(name);
        if pin.exists() {
            let (link, attached_to) = pins::open_link(&pin)
                .with_context(|| format!("{} is not a link of ours", shown(&pin).display()))?;
            if attached_to == id {
                return Ok(Seat::Pinned(link));
            }
            let what = if attached_to == 0 { "was detached" } else { "moves to another cgroup" };
            tracing::info!(program = name, "{what}");
        } else if let Some(link) = self.links.get(name)
            && pins::attached_to(link)? == id
        {
            tracing::info!(program = name, "is attached, and gets its pin back");
            return Ok(Seat::Held);
        }
        for layout in self.pins.other_layouts()? {
            let pin = layout.link(name);
            if let Ok((link, attached_to)) = pins::open_link(&pin)
                && attached_to == id
            {
                return Ok(Seat::Inherited(link, pin));
            }
        }
        let program = self.program(name)?;
        let id = program.attach(cgroup, CgroupAttachMode::Single)?;
        Ok(Seat::New(program.take_link(id)?.try_into()?))
    }

    /// Pins the new links beside those they are to replace: all, or none.
    fn pin_new(&self, places: Vec<(&'static str, Seat)>) -> Result<Vec<(&'static str, Seat)>> {
        let mut done = Vec::new();
        for (name, place) in places {
            // Also of a move to another cgroup that was interrupted, and given up.
            remove_pin(&self.beside(name))?;
            let place = match place {
                Seat::New(link) => {
                    let fresh = self.beside(name);
                    match link.pin(&fresh) {
                        Ok(link) => Seat::New(link.into()),
                        Err(error) => {
                            for (name, _) in done {
                                remove_pin(&self.beside(name))?;
                            }
                            let what = format!("cannot pin {}", shown(&fresh).display());
                            return Err(anyhow::Error::new(error).context(what));
                        }
                    }
                }
                place => place,
            };
            done.push((name, place));
        }
        Ok(done)
    }

    /// Gives the link of a program its name, and the program to its link.
    fn settle(&mut self, name: &'static str, place: Seat) -> Result<()> {
        let pin = self.pins.link(name);
        let cannot_pin = || format!("cannot pin {}", shown(&pin).display());
        let link = match place {
            Seat::New(link) => {
                // Renaming replaces a link to another cgroup, if there is one, in one step.
                fs::rename(self.beside(name), &pin).with_context(cannot_pin)?;
                self.links.insert(name, link);
                return Ok(());
            }
            Seat::Held => {
                let link = self.links.remove(name).context("it is gone")?;
                link.pin(&pin).with_context(cannot_pin)?.into()
            }
            Seat::Pinned(link) => link,
            Seat::Inherited(link, theirs) => {
                self.replace(name, link)?;
                return fs::rename(theirs, &pin).with_context(cannot_pin);
            }
        };
        self.replace(name, link)
    }

    /// Puts our program into a link, in place of whichever is there.
    fn replace(&mut self, name: &'static str, link: FdLink) -> Result<()> {
        let program = self.program(name)?;
        let id = program.attach_to_link(CgroupSockAddrLink::try_from(link)?)?;
        let link = program.take_link(id)?.try_into()?;
        self.links.insert(name, link);
        Ok(())
    }

    fn program(&mut self, name: &str) -> Result<&mut CgroupSockAddr> {
        Ok(self.programs.program_mut(name).context("it is not in the object")?.try_into()?)
    }

    /// Where a new link is pinned that is to replace the one of this name.
    fn beside(&self, name: &str) -> PathBuf {
        self.pins.link(&format!("{name}_new"))
    }
}

/// Removes a pin, if it is there.
fn remove_pin(pin: &Path) -> Result<()> {
    match fs::remove_file(pin) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", shown(pin).display()))
        }
        _ => Ok(()),
    }
}
