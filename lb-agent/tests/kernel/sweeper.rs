//! The thread that looks for sockets, with a loop like the agent's beside it.

use std::{
    net::{SocketAddr, UdpSocket},
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use lb_agent::{
    model::Protocol,
    sockets::{self, News, Reason, Sweeper, judge},
};

use super::{
    connect::{MAPPED, V4, V6, web},
    echo::PATIENCE,
    look::{Elsewhere, Known, error_of},
    raw::{peer, udp},
    world::{World, soon},
};

/// From the change to the application.
const AT_ONCE: Duration = Duration::from_secs(1);

struct Loop {
    sweeper: Arc<Sweeper>,
    known: Arc<Mutex<Known>>,
    done: Arc<Mutex<Vec<(Reason, usize)>>>,
    thread: JoinHandle<()>,
}

impl Loop {
    fn start(world: &World) -> Self {
        let map = sockets::open(&world.pins()).unwrap();
        let (sweeper, mut news) = Sweeper::start(map, world.cgroup(), &[Protocol::Udp]).unwrap();
        let sweeper = Arc::new(sweeper);
        let known = Arc::new(Mutex::new(Known::default()));
        let done = Arc::new(Mutex::new(Vec::new()));
        let (weak, truth, log) = (Arc::downgrade(&sweeper), Arc::clone(&known), Arc::clone(&done));
        let thread = thread::spawn(move || {
            while let Some(news) = news.blocking_recv() {
                match news {
                    News::Seen(found, _) => {
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
        Self { sweeper, known, done, thread }
    }

    fn destroyed(&self) -> usize {
        self.done.lock().unwrap().iter().map(|(_, count)| count).sum()
    }
}

#[test]
fn within_a_second_and_once_more() {
    World::run(|world| {
        let _web = web(world);
        let agent = Loop::start(world);
        let elsewhere = Elsewhere::new();
        let form: SocketAddr = MAPPED.parse().unwrap();
        let far = elsewhere.run(move || udp(form).unwrap());
        let near = [V4, V6].map(|form| udp(form.parse().unwrap()).unwrap());
        let bystander = UdpSocket::bind("10.2.0.1:0").unwrap();
        thread::sleep(Duration::from_millis(300));
        assert_eq!(agent.destroyed(), 0, "it does not look before it is asked");

        let start = Instant::now();
        agent.sweeper.look();
        for socket in near.iter().chain([&far]) {
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            assert_eq!(error_of(socket.recv(&mut [0])), Some(libc::ECONNABORTED));
        }
        assert!(start.elapsed() < AT_ONCE, "{:?}", start.elapsed());
        assert!(soon(|| agent.destroyed() == 3), "{:?}", agent.done);

        // Connected while the first look was under way.
        let late = udp(V4.parse().unwrap()).unwrap();
        assert!(peer(&late).is_ok());
        late.set_read_timeout(Some(PATIENCE)).unwrap();
        assert_eq!(error_of(late.recv(&mut [0])), Some(libc::ECONNABORTED));
        assert!(start.elapsed() < AT_ONCE, "{:?}", start.elapsed());
        assert!(bystander.take_error().unwrap().is_none());

        // A hundred requests are a few looks, and each is about the truth of its time.
        agent.known.lock().unwrap().serving.extend(
            ["10.1.0.1:8080", "10.1.0.2:8080"].map(|addr| addr.parse::<SocketAddr>().unwrap()),
        );
        let served = udp(V4.parse().unwrap()).unwrap();
        for _ in 0..100 {
            agent.sweeper.look();
        }
        thread::sleep(AT_ONCE);
        assert!(peer(&served).is_ok());
        assert!(served.take_error().unwrap().is_none());

        // The thread ends with its handle, and with it the loop.
        drop(agent.sweeper);
        assert!(soon(|| agent.thread.is_finished()));
    });
}
