//! A real Kubernetes of several nodes on this machine, to try socklb in and to test it.
//!
//! Each node, the control plane and a machine outside of the cluster is a *box* ([`machine`]): a set of
//! namespaces with a cgroup of its own in every hierarchy, which to everything inside is a machine.
//! Nothing of it can reach anything else, and nothing of it is left when it is taken away
//! ([`mod@sweep`]).
//!
//! | file | |
//! |---|---|
//! | `plan` | what is asked for, and what it is made of |
//! | `supply` | makes or finds that |
//! | `place`, `cgroups`, `machine`, `network` | boxes |
//! | `secrets`, `control`, `node`, `dns`, `proxy` | what runs in them |
//! | `balancer` | addresses for Services of type LoadBalancer, and the way to them |
//! | `up`, `status`, `sweep`, `faults` | what is done to all of them |
//! | `pods` | as their node has them |
//! | `live` | a cluster that is there, for commands and tests |
//! | `health` | what of it works |

mod balancer;
mod cgroups;
mod control;
mod dns;
mod faults;
mod health;
mod live;
mod machine;
mod network;
mod node;
mod place;
mod plan;
mod pods;
mod proxy;
mod secrets;
mod status;
mod supply;
mod sweep;
mod up;

pub(crate) use self::{
    balancer::{Balance, balance},
    control::API,
    health::READY,
    live::{CONTROL, Cluster, Node, OUTSIDE},
    network::{OUTSIDE as OUTSIDE_V4, OUTSIDE_V6},
    place::{HOME, tests_turn, turn, turn_within, var},
    plan::{Mode, Plan, Proxy, Shape},
    pods::Container,
    proxy::SOCKLB,
    status::run as status,
    supply::bring,
    sweep::sweep,
    up::run as up,
};
