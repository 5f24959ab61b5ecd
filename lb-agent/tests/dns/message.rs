//! DNS messages by hand, for sockets that stay open longer than a resolver's.

use std::{
    io,
    net::{SocketAddr, UdpSocket},
};

use super::cluster::WHO;

/// A question for the IPv4 address of [`WHO`].
pub(super) fn question(id: u16) -> Vec<u8> {
    let mut message = id.to_be_bytes().to_vec();
    // Recursion desired; one question, nothing else.
    message.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in WHO.split('.') {
        message.push(label.len().try_into().unwrap());
        message.extend(label.as_bytes());
    }
    // The root, type A, class IN.
    message.extend([0, 0, 1, 0, 1]);
    message
}

/// The instance that gave this answer.
pub(super) fn instance(id: u16, answer: &[u8]) -> u8 {
    assert_eq!(answer[..2], id.to_be_bytes(), "an answer to another question");
    assert_eq!(answer[3] & 15, 0, "no good answer: {answer:?}");
    // The only record with such an address: its length, then 192.0.2.N.
    let mut windows = answer.windows(6).filter(|window| window.starts_with(&[0, 4, 192, 0, 2]));
    windows.next().unwrap_or_else(|| panic!("no address of ours: {answer:?}"))[5]
}

/// Asks by a connected socket, and says who answered.
pub(super) fn ask(socket: &UdpSocket, id: u16) -> io::Result<u8> {
    socket.send(&question(id))?;
    let mut answer = [0; 512];
    let length = socket.recv(&mut answer)?;
    Ok(instance(id, &answer[..length]))
}

/// Asks by an unconnected one. The answer comes from whom was asked.
pub(super) fn ask_at(socket: &UdpSocket, server: SocketAddr, id: u16) -> io::Result<u8> {
    socket.send_to(&question(id), server)?;
    let mut answer = [0; 512];
    let (length, from) = socket.recv_from(&mut answer)?;
    assert_eq!(from, server, "who was asked, and who answered");
    Ok(instance(id, &answer[..length]))
}
