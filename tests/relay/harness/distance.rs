//! A proxy that makes a server look far away: every byte comes half a round trip later, in both directions, at any rate. Changes no byte.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

/// Reads that may be under way in one direction; 64 KiB each at most.
const UNDER_WAY_LIMIT: usize = 4096;
/// Bytes of one read.
const READ_BYTES: usize = 64 * 1024;

/// Listens for connections to `port` of this machine, from now to the end of the program; gives its own port.
pub fn proxy(port: u16, round_trip: Duration) -> u16 {
    between(port, move |near, far| {
        one_way(near.try_clone().unwrap(), far.try_clone().unwrap(), round_trip / 2);
        one_way(far, near, round_trip / 2);
    })
}

/// The same for any way to join both ends of a connection.
pub fn between(port: u16, join: impl Fn(TcpStream, TcpStream) + Send + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let own = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for near in listener.incoming() {
            let (near, far) = (near.unwrap(), TcpStream::connect(("127.0.0.1", port)));
            // A server that is down refuses: so do we.
            let Ok(far) = far else { continue };
            join(near, far);
        }
    });
    own
}

fn one_way(mut from: TcpStream, to: TcpStream, delay: Duration) {
    to.set_nodelay(true).unwrap();
    let (sender, receiver) = sync_channel(UNDER_WAY_LIMIT);
    std::thread::spawn(move || deliver(&receiver, to));
    std::thread::spawn(move || {
        let mut buffer = vec![0; READ_BYTES];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            if sender.send((Instant::now() + delay, buffer[..count].to_vec())).is_err() {
                break;
            }
        }
    });
}

fn deliver(arriving: &Receiver<(Instant, Vec<u8>)>, mut to: TcpStream) {
    while let Ok((due, bytes)) = arriving.recv() {
        // Exact to the 50 µs by which Linux may prolong a sleep.
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        if to.write_all(&bytes).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}
