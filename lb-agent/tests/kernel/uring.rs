//! connect() by io_uring runs the same hook, also when a kernel thread carries it out.
#![expect(unsafe_code, reason = "a ring of one entry, made by hand: no crate is worth it")]

use std::{
    io,
    net::{SocketAddr, TcpStream},
    os::fd::{AsRawFd, FromRawFd as _, OwnedFd},
    ptr,
    sync::atomic::{AtomicU32, Ordering},
};

use nix::sys::socket::{SockaddrLike as _, SockaddrStorage};

use super::{
    connect::{MAPPED, V4, V6, web},
    echo::ask,
    raw::nonblocking_tcp,
    world::World,
};

/// `linux/io_uring.h`.
const IORING_OP_CONNECT: u8 = 16;
const IOSQE_ASYNC: u8 = 1 << 4;
const IORING_ENTER_GETEVENTS: u32 = 1;
const IORING_OFF_CQ_RING: libc::off_t = 0x800_0000;
const IORING_OFF_SQES: libc::off_t = 0x1000_0000;

#[derive(Default)]
#[repr(C)]
struct Params {
    sq_entries: u32,
    cq_entries: u32,
    flags: u32,
    sq_thread_cpu: u32,
    sq_thread_idle: u32,
    features: u32,
    wq_fd: u32,
    reserved: [u32; 3],
    /// head, tail, ring_mask, ring_entries, flags, dropped, array, reserved, user_addr (2)
    sq: [u32; 10],
    /// head, tail, ring_mask, ring_entries, overflow, cqes, flags, reserved, user_addr (2)
    cq: [u32; 10],
}

#[repr(C)]
struct Submission {
    opcode: u8,
    flags: u8,
    ioprio: u16,
    fd: i32,
    /// For connect: the length of the address.
    offset: u64,
    addr: u64,
    rest: [u64; 5],
}

struct Memory {
    base: *mut libc::c_void,
    len: usize,
}

impl Memory {
    fn map(ring: &OwnedFd, len: usize, offset: libc::off_t) -> Self {
        let (protection, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_POPULATE);
        // SAFETY: a new mapping at an address that the kernel chooses aliases nothing.
        let base = unsafe {
            libc::mmap(ptr::null_mut(), len, protection, flags, ring.as_raw_fd(), offset)
        };
        assert_ne!(base, libc::MAP_FAILED, "{}", io::Error::last_os_error());
        Self { base, len }
    }

    /// The object at this many bytes from the start.
    fn at<T>(&self, offset: u32) -> *mut T {
        let offset = usize::try_from(offset).unwrap();
        assert!(offset + size_of::<T>() <= self.len);
        // SAFETY: within the mapping.
        unsafe { self.base.byte_add(offset) }.cast()
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping is whole, and nothing refers to it any more.
        unsafe { libc::munmap(self.base, self.len) };
    }
}

/// connect(2) by a ring of its own; None if the kernel lets nobody make one.
fn connect(socket: &OwnedFd, to: SocketAddr, flags: u8) -> Option<io::Result<()>> {
    let mut params = Params::default();
    // SAFETY: the kernel reads and writes `params`, which has the layout that it expects.
    let ring = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, &raw mut params) };
    if ring < 0 {
        println!("left out, no io_uring here: {}", io::Error::last_os_error());
        return None;
    }
    // SAFETY: the descriptor is new, and nobody else's.
    let ring = unsafe { OwnedFd::from_raw_fd(ring.try_into().unwrap()) };
    let [_, sq_tail, _, _, _, _, array, ..] = params.sq;
    let [_, _, cq_mask, _, _, cqes, ..] = params.cq;
    let submissions = Memory::map(&ring, usize::try_from(array).unwrap() + 4, 0);
    let completions = Memory::map(&ring, usize::try_from(cqes).unwrap() + 32, IORING_OFF_CQ_RING);
    let entries = Memory::map(&ring, size_of::<Submission>(), IORING_OFF_SQES);

    let addr = SockaddrStorage::from(to);
    let entry = Submission {
        opcode: IORING_OP_CONNECT,
        flags,
        ioprio: 0,
        fd: socket.as_raw_fd(),
        offset: u64::from(addr.len()),
        addr: addr.as_ptr().expose_provenance() as u64,
        rest: [0; 5],
    };
    // SAFETY: the offsets are the kernel's own, and it looks at the ring in io_uring_enter() only.
    // `addr` outlives the operation, whose end is waited for; the mask says that entry 0 is it.
    unsafe {
        assert_eq!(completions.at::<u32>(cq_mask).read_volatile() & !1, 0);
        entries.at::<Submission>(0).write_volatile(entry);
        submissions.at::<u32>(array).write_volatile(0);
        AtomicU32::from_ptr(submissions.at(sq_tail)).store(1, Ordering::Release);
        let (fd, wait, none) = (ring.as_raw_fd(), IORING_ENTER_GETEVENTS, ptr::null::<u8>());
        let done = libc::syscall(libc::SYS_io_uring_enter, fd, 1, 1, wait, none, 0);
        assert_eq!(done, 1, "{}", io::Error::last_os_error());
        // user_data (8 bytes), res (4), flags (4)
        match completions.at::<i32>(cqes + 8).read_volatile() {
            0 => Some(Ok(())),
            error => Some(Err(io::Error::from_raw_os_error(-error))),
        }
    }
}

#[test]
fn by_io_uring() {
    World::run(|world| {
        let (mut control, _backends) = web(world);
        control.put("empty", &["10.96.0.11"], 80, &[]);
        for flags in [0, IOSQE_ASYNC] {
            for to in [V4, V6, MAPPED].map(|form| form.parse::<SocketAddr>().unwrap()) {
                let fd = nonblocking_tcp(to.is_ipv4());
                match connect(&fd, to, flags) {
                    None => return,
                    Some(result) => result.unwrap(),
                }
                let stream = TcpStream::from(fd);
                stream.set_nonblocking(false).unwrap();
                assert_eq!(stream.peer_addr().unwrap(), to);
                ask(&stream);
            }
            let refused = connect(&nonblocking_tcp(true), "10.96.0.11:80".parse().unwrap(), flags);
            let error = refused.unwrap().unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ECONNREFUSED));
            // UDP's sends nothing, and goes on as if there were no programs.
            for to in ["10.96.0.11:80", "10.96.0.10:81", "[::ffff:10.96.0.11]:80"] {
                let to: SocketAddr = to.parse().unwrap();
                let socket = super::raw::udp_socket(to.is_ipv4()).into();
                let error = connect(&socket, to, flags).unwrap().unwrap_err();
                assert_eq!(error.raw_os_error(), Some(libc::ENETUNREACH), "{to}");
            }
        }
    });
}
