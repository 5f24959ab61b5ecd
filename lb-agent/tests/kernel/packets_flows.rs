//! What connection tracking remembers of a stranger's UDP flows (L2): it is forgotten for endpoints that
//! left, and for nobody else.

use std::{fs, net::SocketAddr};

use lb_agent::packets;

use super::{
    lane::{Answer, Asker, Lane},
    packets::{Web, node_port, put, start, vip, web},
    world::{World, soon},
    yaml,
};

fn addresses() -> [SocketAddr; 4] {
    [vip(true), node_port(true), vip(false), node_port(false)]
}

/// A flow that leads to this endpoint.
fn flow(lane: &Lane, to: SocketAddr, endpoint: &str) -> Asker {
    let mut askers = (0..50).map(|_| lane.asker(to));
    let found = askers.find(|asker| asker.ask().name() == endpoint);
    found.unwrap_or_else(|| panic!("{to} does not lead to {endpoint}"))
}

/// The number of its entry.
fn id(asker: &Asker) -> Option<u32> {
    let flows = packets::flows().unwrap();
    let mut own = flows.iter().filter(|flow| flow.client.port() == asker.addr().port());
    let id = own.next().map(|flow| flow.id);
    assert_eq!(own.next(), None);
    id
}

fn is_remembered(to: SocketAddr) -> bool {
    packets::flows().unwrap().iter().any(|flow| flow.to == to)
}

#[test]
fn flows_to_an_endpoint_that_left_move_and_all_others_stay() {
    World::run(|world| {
        let lane = Lane::new();
        put(world, &web(&[1, 3]));
        let _agent = start(world);
        let of = |endpoint| addresses().map(|to| flow(&lane, to, endpoint));
        let (left, stay) = (of("endpoint-1"), of("endpoint-3"));
        let before = stay.each_ref().map(id);
        assert!(before.iter().all(Option::is_some));
        // One ends and still serves: nobody new is sent there.
        put(world, &Web { endpoints: vec![(2, true), (3, false)], ..web(&[]) });
        // What is on its way when its flow ends has no answer.
        let is_2 = |answer| matches!(answer, Answer::From { name, .. } if name == "endpoint-2");
        for asker in &left {
            assert!(soon(|| is_2(asker.ask())), "{}", asker.addr());
        }
        assert_eq!(stay.each_ref().map(id), before);
        for asker in &stay {
            assert_eq!(asker.ask().name(), "endpoint-3");
        }
        // Nobody serves: kube-proxy forgets to look.
        put(world, &web(&[]));
        assert!(soon(|| !addresses().into_iter().any(is_remembered)));
    });
}

#[test]
fn flows_that_led_nowhere_find_the_service_and_end_with_it() {
    World::run(|world| {
        let lane = Lane::new();
        yaml::objects(world);
        let _agent = start(world);
        let early = [true, false].map(|ipv4| lane.asker(node_port(ipv4)));
        for asker in &early {
            assert_eq!(asker.ask(), Answer::Refused);
            assert!(id(asker).is_some());
        }
        put(world, &web(&[1]));
        for asker in &early {
            assert!(soon(|| asker.ask() != Answer::Refused));
            assert_eq!(asker.ask().name(), "endpoint-1");
        }
        // A Service that is deleted: kube-proxy forgets to look.
        fs::remove_file(yaml::objects(world).join("web.yaml")).unwrap();
        assert!(soon(|| !addresses().into_iter().any(is_remembered)));
        for asker in &early {
            assert!(soon(|| asker.ask() == Answer::Refused));
        }
    });
}
