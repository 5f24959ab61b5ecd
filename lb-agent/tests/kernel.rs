//! The programs under real sockets. Needs root, cgroup2 and iproute2:
//! `cargo xtask test kernel`.
//!
//! Each test has a cgroup, a network namespace without a way out and a bpffs of its own, see
//! [`kernel::world`]. What tells a translated connection from one that is not: no Service address
//! has a route there, so without the programs connect() says ENETUNREACH. What tells the backend:
//! every backend is an address of `lo`, and the kernel takes a local destination for the source
//! too, so getsockname() names it, whatever the programs make getpeername() say.
#![expect(clippy::unwrap_used, clippy::panic, reason = "this is all test code")]

mod kernel {
    mod agent;
    mod clients;
    mod control;
    mod echo;
    mod lane;
    mod look;
    mod machine;
    mod pods;
    mod raw;
    mod world;
    mod yaml;

    mod absent;
    mod adoption;
    mod affinity;
    mod affinity_bonds;
    mod affinity_held;
    mod affinity_table;
    mod answers;
    mod capacity;
    mod client_changes;
    mod connect;
    mod crowd;
    mod dialling;
    mod ended;
    mod exclusive;
    mod filter;
    mod flips;
    mod generations;
    mod guard;
    mod healing;
    mod health_ports;
    mod home;
    mod hung_files;
    mod inner_cluster;
    mod interfaces;
    mod kept;
    mod kube_proxy;
    mod languages;
    mod layouts;
    mod lbctl;
    mod meddled;
    mod node_cgroup;
    mod node_local_dns;
    mod node_port_claims;
    mod node_ports;
    mod node_ports_elsewhere;
    mod node_ports_loopback;
    mod packets;
    mod packets_addresses;
    mod packets_affinity;
    mod packets_bad;
    mod packets_churn;
    mod packets_established;
    mod packets_flows;
    mod packets_refused;
    mod packets_sizes;
    mod packets_stray;
    mod packets_table;
    mod packets_two_nodes;
    mod peername;
    mod policies;
    mod programs;
    mod recycling;
    mod refusal;
    mod renamed;
    mod resize;
    mod restart;
    mod said;
    mod seen;
    mod shared_ports;
    mod source_addresses;
    mod sources;
    mod spread;
    mod stale;
    mod startup;
    mod status;
    mod sweeper;
    mod takeover;
    mod udp;
    mod udp_bounded;
    mod udp_connected;
    mod udp_flips;
    mod udp_labels;
    mod udp_many;
    mod udp_probes;
    mod udp_refusal;
    mod udp_sticky;
    mod unknown_ports;
    mod unpinned;
    mod untouched;
    mod unwritable;
    mod uring;
    mod verify;
}
