//! Whoever lays hands on the programs may have on the maps: an agent that repairs the ones reads the
//! others anew.

use std::fs;

use lb_agent::{
    datapath::Datapath,
    maps::{Access, Pinned},
    pins::Pins,
};
use lb_core::{op::Op, store::Store as _};
use nix::mount::MsFlags;

use super::{
    agent::Agent,
    connect::V4,
    control::{SIZES, pinned},
    filter::overwrite,
    flips::udp_backend,
    world::{World, backend4, mount_bpffs, soon},
    yaml,
};

/// Programs that run before the agent's, and know no Service: a trouble that it cannot end, so that it
/// looks every other second.
pub(crate) fn programs_before(world: &World) -> Datapath {
    let second = world.dir().join("second");
    fs::create_dir(&second).unwrap();
    mount_bpffs(&second, MsFlags::empty());
    let (mut before, _maps) = Datapath::load(&Pins::new(&second), SIZES).unwrap();
    before.attach(world.cgroup()).unwrap();
    before
}

#[test]
fn what_somebody_did_to_the_maps_is_undone_with_the_rest() {
    World::run(|world| {
        let before = programs_before(world);

        yaml::put(world, "web", "10.96.0.10", &[backend4(1)]);
        yaml::put(world, "other", "10.96.0.11", &[backend4(2)]);
        let agent = Agent::start(world);
        agent.wait_for("runs before our");
        let good = pinned(world);
        let reaches = |to: &str, n| udp_backend(to).is_ok_and(|addr| addr.ip() == backend4(n));
        assert!(reaches(V4, 1) && reaches("10.96.0.11:80", 2));

        // One entry is gone, another leads elsewhere, and so does an address.
        let mut maps = Pinned::open(&world.pins().maps().unwrap().unwrap(), Access::Write).unwrap();
        let of = |name: &str| {
            let id = good.names.iter().find(|(_, port)| {
                *port.service.name == *name && port.protocol == lb_core::model::Protocol::Udp
            });
            let id = *id.unwrap().0;
            good.services.iter().find(|(_, service)| service.id == id).unwrap()
        };
        let (web, other) = (of("web"), of("other"));
        maps.apply(&Op::DeleteService { key: *web.0 }).unwrap();
        maps.apply(&Op::PutService { key: *other.0, service: *web.1 }).unwrap();
        let (addr, _) = good.addresses.first_key_value().unwrap();
        maps.apply(&Op::DeleteAddress { addr: *addr }).unwrap();
        assert!(!reaches(V4, 1) && !reaches("10.96.0.11:80", 2));
        assert!(!agent.log().contains("attached again"));

        fs::remove_file(world.pins().link("recvmsg6")).unwrap();
        agent.wait_for("attached again");
        assert!(soon(|| reaches(V4, 1) && reaches("10.96.0.11:80", 2)), "{:#?}", pinned(world));
        assert!(soon(|| pinned(world).addresses == good.addresses), "{:#?}", pinned(world));
        // And the agent knows what there is.
        yaml::put(world, "web", "10.96.0.10", &[backend4(3)]);
        assert!(soon(|| reaches(V4, 3)));
        drop(before);
    });
}

/// No program and no pin is wrong then, and no map lacks an entry: only the canary sees it.
#[test]
fn a_filter_without_bits_is_seen_by_the_canary_and_undone() {
    World::run(|world| {
        yaml::put(world, "web", "10.96.0.10", &[backend4(1)]);
        let agent = Agent::start(world);
        let reaches = || udp_backend(V4).is_ok_and(|addr| addr.ip() == backend4(1));
        assert!(soon(reaches));
        overwrite(world, |_| 0);
        assert!(!reaches());
        assert!(soon(reaches), "{}", agent.log());
    });
}
