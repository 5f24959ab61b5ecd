//! The thread that looks for sockets, with a loop like the agent's beside it.

use std::{
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use lb_agent::sockets::{self, EndReason, News, SocketKind, Sweeper, judge};

use super::{
    connect::{MAPPED, V4, V6, web},
    echo::PATIENCE,
    look::{Elsewhere, Known, error_of},
    raw::{peer, udp},
    world::{World, soon},
};

struct Loop {
    sweeper: Arc<Sweeper>,
    known: Arc<Mutex<Known>>,
    done: Arc<Mutex<Vec<(EndReason, usize)>>>,
    /// How often it has looked.
    looks: Arc<AtomicU32>,
    thread: JoinHandle<()>,
}

impl Loop {
    fn start(world: &World) -> Self {
        let maps = sockets::open(&world.pins()).unwrap();
        let (sweeper, mut news) = Sweeper::start(maps, world.cgroup(), &[SocketKind::Udp]).unwrap();
        let sweeper = Arc::new(sweeper);
        let known = Arc::new(Mutex::new(Known::default()));
        let done = Arc::new(Mutex::new(Vec::new()));
        let looks = Arc::new(AtomicU32::new(0));
        let (weak, truth, log) = (Arc::downgrade(&sweeper), Arc::clone(&known), Arc::clone(&done));
        let counted = Arc::clone(&looks);
        let thread = thread::spawn(move || {
            while let Some(news) = news.blocking_recv() {
                match news {
                    News::Seen(found, _) => {
                        counted.fetch_add(1, Relaxed);
                        let truth = truth.lock().unwrap();
                        let judged = |found| judge(&found, &*truth).map(|reason| (found, reason));
                        let condemned = found.into_iter().filter_map(judged).collect();
                        if let Some(sweeper) = weak.upgrade() {
                            sweeper.destroy(condemned);
                        }
                    }
                    News::Done(outcomes) => {
                        let counts = outcomes.iter().map(|(why, end)| (*why, end.destroyed));
                        log.lock().unwrap().extend(counts);
                    }
                }
            }
        });
        Self { sweeper, known, done, looks, thread }
    }

    fn looks(&self) -> u32 {
        self.looks.load(Relaxed)
    }

    fn destroyed(&self) -> usize {
        self.done.lock().unwrap().iter().map(|(_, count)| count).sum()
    }
}

#[test]
fn at_once_and_once_more() {
    World::run(|world| {
        let _web = web(world);
        let agent = Loop::start(world);
        let elsewhere = Elsewhere::new();
        let form: SocketAddr = MAPPED.parse().unwrap();
        let far = elsewhere.run(move || udp(form).unwrap());
        let near = [V4, V6].map(|form| udp(form.parse().unwrap()).unwrap());
        let bystander = UdpSocket::bind("10.2.0.1:0").unwrap();
        thread::sleep(Duration::from_millis(300));
        assert_eq!(agent.looks(), 0, "it does not look before it is asked");

        // It is the first look that ends them; when it and the second one are due, says the agenda.
        agent.sweeper.look();
        for socket in near.iter().chain([&far]) {
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            assert_eq!(error_of(socket.recv(&mut [0])), Some(libc::ECONNABORTED));
        }
        assert!(soon(|| agent.destroyed() == 3), "{:?}", agent.done);
        {
            let done = agent.done.lock().unwrap();
            assert_eq!(done.len(), 1, "all of them by one look: {done:?}");
        }

        // Connected after a look: without being asked again, the second one sees it too. Unless this
        // machine is too busy to connect between the two.
        assert!(soon(|| agent.looks() == 2), "no second look");
        let seen = (0..20).any(|_| {
            let before = agent.looks();
            agent.sweeper.look();
            assert!(soon(|| agent.looks() > before), "not at once");
            let late = udp(V4.parse().unwrap()).unwrap();
            assert!(soon(|| agent.looks() > before + 1), "no second look");
            late.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
            error_of(late.recv(&mut [0])) == Some(libc::ECONNABORTED)
        });
        assert!(seen, "the second look ends nothing");
        assert!(bystander.take_error().unwrap().is_none());

        // A hundred requests are a few looks, and each is about the truth of its time.
        agent.known.lock().unwrap().serving.extend(
            ["10.1.0.1:8080", "10.1.0.2:8080"].map(|addr| addr.parse::<SocketAddr>().unwrap()),
        );
        let served = udp(V4.parse().unwrap()).unwrap();
        let before = agent.looks();
        for _ in 0..100 {
            agent.sweeper.look();
        }
        assert!(soon(|| agent.looks() > before + 1), "no second look");
        assert!(peer(&served).is_ok());
        assert!(served.take_error().unwrap().is_none());

        // The thread ends with its handle, and with it the loop.
        drop(agent.sweeper);
        assert!(soon(|| agent.thread.is_finished()));
    });
}
