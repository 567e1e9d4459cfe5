//! A proxy whose server's bytes come slowly, as over a thin line, and once not at all for a while. Changes no byte.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use super::servers::distance::between;

/// Bytes that come at once …
const SIP_BYTES: usize = 16 * 1024;
/// … and the pause behind them: some 250 KiB a second.
const SIP_PAUSE: Duration = Duration::from_millis(60);

/// Listens for connections to `port` of this machine, from now to the end of the program; gives its own port. Each connection stands still for
/// `stop` once, when `stop_behind` bytes have come from the server.
pub fn trickle(port: u16, stop_behind: usize, stop: Duration) -> u16 {
    between(port, move |near, far| {
        let (to_server, from_server) = ((near.try_clone().unwrap(), far.try_clone().unwrap()), (far, near));
        std::thread::spawn(move || pass(to_server, |_| {}));
        let mut has_stopped = false;
        let slowly = move |passed: usize| {
            std::thread::sleep(SIP_PAUSE);
            if passed >= stop_behind && !std::mem::replace(&mut has_stopped, true) {
                std::thread::sleep(stop);
            }
        };
        std::thread::spawn(move || pass(from_server, slowly));
    })
}

/// Passes bytes on; `pause` is told how many have passed.
fn pass((mut from, mut to): (TcpStream, TcpStream), mut pause: impl FnMut(usize)) {
    to.set_nodelay(true).unwrap();
    let (mut buffer, mut passed) = (vec![0; SIP_BYTES], 0);
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
        passed += count;
        pause(passed);
    }
    let _ = to.shutdown(Shutdown::Both);
}
