//! Who the clients are, followed in all network namespaces: a thread that listens.
//!
//! The kernel says in each namespace when an address, a route or a link changes there; then that
//! namespace is asked anew. New ones are noticed where container runtimes mount them: the kernel says
//! when mounts change. Those that are mounted nowhere are looked for when [`Followed::look`] says so.
//! Should a sign ever be lost, all are looked at now and then.
//!
//! A socket keeps its namespace alive. So once a second each namespace is looked for where it was
//! found, and is given up when it is not there any more and nowhere else: it lives a second longer at
//! most than without us.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{self, Read as _, Write as _},
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use lb_common::abi::{ClientKey, SourceAddress};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::resource::{Resource, getrlimit},
};
use tokio::sync::watch;

use super::{
    clients::{ClientsQuestion, home},
    namespaces::{Door, NamespaceId, Namespaces, cookie_of, tour},
    routes,
};
use crate::netlink::{self, Netlink};

/// How often all are looked at although nothing seems to have changed.
const LOOK: Duration = Duration::from_secs(15);
/// How often it is asked whether the namespaces are still there.
const THERE: Duration = Duration::from_secs(1);
/// A namespace is left alone for so many times as long as it took to ask it: nobody's changes keep the
/// thread busy.
const REST: u32 = 10;
/// And no longer than this.
const MOST: Duration = Duration::from_millis(500);
/// A mount follows the file that it stands on; several mounts make one container.
const SETTLE: Duration = Duration::from_millis(5);
/// A list of mounts: poll() says when it has changed.
const MOUNTS: [&str; 2] = ["/proc/self/mountinfo", "/proc/1/mountinfo"];

/// The clients on this machine.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct SourceAddresses {
    /// From where sockets connect.
    pub known: BTreeMap<ClientKey, SourceAddress>,
    /// Cookies of the network namespaces that were asked.
    pub namespaces: BTreeSet<u64>,
    /// Whether each network namespace that was found could be asked.
    pub complete: bool,
}

/// The thread; it ends with this.
#[derive(Debug)]
pub struct Followed {
    wish: Arc<Mutex<Wish>>,
    wake: UnixStream,
}

#[derive(Debug, Default)]
struct Wish {
    question: ClientsQuestion,
    is_new: bool,
    look: bool,
}

impl Followed {
    /// Begins, and returns when all that there are were asked: some milliseconds.
    pub fn start(
        question: ClientsQuestion,
    ) -> io::Result<(Self, watch::Receiver<SourceAddresses>)> {
        let (wake, woken) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        woken.set_nonblocking(true)?;
        let wish = Arc::new(Mutex::new(Wish { question: question.clone(), ..Wish::default() }));
        let (said, heard) = watch::channel(SourceAddresses::default());
        let mounts = MOUNTS.iter().filter_map(|path| File::open(path).ok()).collect();
        let mut thread = Thread {
            wish: Arc::clone(&wish),
            woken,
            said,
            mounts,
            watched: BTreeMap::new(),
            complete: true,
            question,
        };
        thread.look()?;
        thread.tell();
        thread::Builder::new().name("clients".into()).spawn(move || thread.run())?;
        Ok((Self { wish, wake }, heard))
    }

    /// Looks for namespaces that are mounted nowhere.
    pub fn look(&self) {
        self.wish(|wish| wish.look = true);
    }

    /// Asks for this from now on.
    pub fn ask(&self, question: ClientsQuestion) {
        self.wish(|wish| {
            if wish.question != question {
                wish.question = question;
                wish.is_new = true;
            }
        });
    }

    fn wish(&self, change: impl FnOnce(&mut Wish)) {
        let mut wish = self.wish.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut wish);
        if wish.look || wish.is_new {
            // Full: it is woken anyway. Gone: it has said why.
            let _ = (&self.wake).write(&[1]);
        }
    }
}

/// A namespace that is listened to.
#[derive(Debug)]
struct Watched {
    door: Door,
    cookie: u64,
    /// None beyond the limit of open files: it is asked at each look only.
    line: Option<Line>,
    home: BTreeMap<ClientKey, SourceAddress>,
    /// Something has changed.
    is_stale: bool,
    /// It is not asked before.
    rests_until: Instant,
}

/// To ask, and to hear of changes. Two sockets, so that no flood of changes drowns an answer.
#[derive(Debug)]
struct Line {
    netlink: Netlink,
    signs: OwnedFd,
}

struct Thread {
    wish: Arc<Mutex<Wish>>,
    woken: UnixStream,
    said: watch::Sender<SourceAddresses>,
    mounts: Vec<File>,
    watched: BTreeMap<NamespaceId, Watched>,
    complete: bool,
    question: ClientsQuestion,
}

impl Thread {
    fn run(mut self) {
        let now = Instant::now();
        let (mut look, mut there) = (now + LOOK, now + THERE);
        let mut mounted = None;
        loop {
            let stale = self.watched.values().filter(|it| it.is_stale).map(|it| it.rests_until);
            let due = stale.chain([look, there]).chain(mounted).min().unwrap_or(look);
            let Some(has_changed) = self.wait(due) else { return };
            let now = Instant::now();
            if has_changed {
                mounted.get_or_insert(now + SETTLE);
            }
            if self.wishes() {
                look = now;
            }
            if there <= now {
                there = now + THERE;
                if !self.watched.iter().all(|(id, it)| it.door.leads_to(*id)) {
                    look = now;
                }
            }
            if look <= now {
                (look, mounted) = (now + LOOK, None);
                if let Err(error) = self.look() {
                    tracing::warn!(%error, "cannot look for network namespaces");
                }
            } else if mounted.is_some_and(|due| due <= now) {
                mounted = None;
                self.enter(Namespaces::mounted());
            }
            self.ask_stale();
            self.tell();
        }
    }

    /// Until then, or until something happens; whether mounts have changed. None if nobody listens any
    /// more.
    fn wait(&mut self, due: Instant) -> Option<bool> {
        let patience = due.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
        let mut fds = vec![PollFd::new(self.woken.as_fd(), PollFlags::POLLIN)];
        fds.extend(self.mounts.iter().map(|file| PollFd::new(file.as_fd(), PollFlags::POLLPRI)));
        let listening: Vec<(NamespaceId, BorrowedFd<'_>)> = self
            .watched
            .iter()
            .filter(|(_, it)| !it.is_stale)
            .filter_map(|(id, it)| Some((*id, it.line.as_ref()?.signs.as_fd())))
            .collect();
        fds.extend(listening.iter().map(|(_, fd)| PollFd::new(*fd, PollFlags::POLLIN)));
        if let Err(error) =
            poll(&mut fds, PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX))
            && error != nix::errno::Errno::EINTR
        {
            tracing::warn!(%error, "cannot listen to network namespaces");
            thread::sleep(THERE);
        }
        let mut happened = fds.iter().map(|fd| fd.any().unwrap_or_default());
        let is_woken = happened.next().unwrap_or_default();
        let mut has_changed = false;
        for _ in &self.mounts {
            has_changed |= happened.next().unwrap_or_default();
        }
        let signs = listening.iter().zip(happened).filter(|(_, happened)| *happened);
        let signs: Vec<NamespaceId> = signs.map(|((id, _), _)| *id).collect();
        for id in signs {
            if let Some(it) = self.watched.get_mut(&id) {
                it.is_stale = true;
            }
        }
        if is_woken {
            let mut bytes = [0; 64];
            loop {
                match (&self.woken).read(&mut bytes) {
                    Ok(0) => return None,
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(_) => break,
                }
            }
        }
        Some(has_changed)
    }

    /// Takes in what was asked for; true if that is a look.
    fn wishes(&mut self) -> bool {
        let mut wish = self.wish.lock().unwrap_or_else(PoisonError::into_inner);
        if std::mem::take(&mut wish.is_new) {
            self.question = wish.question.clone();
            for it in self.watched.values_mut() {
                it.is_stale = true;
            }
        }
        std::mem::take(&mut wish.look)
    }

    /// Finds all there are, and asks them.
    fn look(&mut self) -> io::Result<()> {
        let found = Namespaces::find()?;
        let doors: BTreeMap<NamespaceId, Door> = found.ids.into_iter().zip(found.doors).collect();
        self.complete = true;
        self.watched.retain(|id, it| {
            it.is_stale = true;
            match doors.get(id) {
                Some(door) => it.door = door.clone(),
                None => return false,
            }
            // Without a socket it has to be entered again.
            it.line.is_some()
        });
        self.enter(doors);
        self.ask_stale();
        Ok(())
    }

    /// Listens to those that are new.
    fn enter(&mut self, mut doors: BTreeMap<NamespaceId, Door>) {
        doors.retain(|id, _| !self.watched.contains_key(id));
        if doors.is_empty() {
            return;
        }
        // Half of the open files are the others', and a line has two.
        let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft / 4);
        let room = usize::try_from(limit).unwrap_or(usize::MAX).saturating_sub(self.watched.len());
        let (ids, doors): (Vec<NamespaceId>, Vec<Door>) = doors.into_iter().unzip();
        let question = self.question.clone();
        let seen = tour(&doors, |index| {
            // First what hears of changes: none goes unseen.
            let signs = netlink::signs(routes::SIGNS)?;
            let mut netlink = Netlink::route()?;
            let cookie = cookie_of(netlink.fd())?;
            let home = ask(&mut netlink, cookie, doors[index] == Door::Own, &question)?;
            Ok((cookie, home, (index < room).then_some(Line { netlink, signs })))
        });
        for ((id, door), result) in ids.into_iter().zip(doors).zip(seen) {
            match result {
                Ok((cookie, home, line)) => {
                    let rests_until = Instant::now();
                    let it = Watched { door, cookie, line, home, is_stale: false, rests_until };
                    self.watched.insert(id, it);
                }
                // It has ended meanwhile; or a process that showed it has, and others live there.
                Err(error) => {
                    tracing::debug!(%error, "a network namespace cannot be asked");
                    self.complete = false;
                }
            }
        }
    }

    /// Asks those in which something has changed.
    fn ask_stale(&mut self) {
        for it in self.watched.values_mut() {
            let begun = Instant::now();
            if !it.is_stale || it.rests_until > begun {
                continue;
            }
            it.is_stale = false;
            let Some(Line { netlink, signs }) = &mut it.line else { continue };
            // What is said from now on is asked about again.
            netlink::heard(signs);
            match ask(netlink, it.cookie, it.door == Door::Own, &self.question) {
                Ok(home) => {
                    it.home = home;
                    it.rests_until = begun + (begun.elapsed() * REST).min(MOST);
                }
                // What was known holds until it can be asked again.
                Err(error) => {
                    tracing::debug!(%error, "a network namespace cannot be asked");
                    (it.is_stale, it.rests_until) = (true, begun + THERE);
                }
            }
        }
    }

    fn tell(&self) {
        let known = self.watched.values().flat_map(|it| it.home.clone()).collect();
        let namespaces = self.watched.values().map(|it| it.cookie).collect();
        let clients = SourceAddresses { known, namespaces, complete: self.complete };
        self.said.send_if_modified(|said| {
            let is_new = *said != clients;
            if is_new {
                *said = clients;
            }
            is_new
        });
    }
}

fn ask(
    netlink: &mut Netlink,
    cookie: u64,
    is_own: bool,
    question: &ClientsQuestion,
) -> io::Result<BTreeMap<ClientKey, SourceAddress>> {
    let addresses = routes::addresses(netlink)?;
    let mut failed = Ok(());
    let home = home(cookie, is_own, &addresses, question, |to| {
        routes::source(netlink, to).unwrap_or_else(|error| {
            failed = Err(error);
            None
        })
    });
    netlink.rest();
    failed.map(|()| home)
}
