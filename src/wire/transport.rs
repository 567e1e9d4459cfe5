//! The byte stream below a connection: TCP or Unix socket, with or without TLS. Knows no messages.

use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, RawFd};
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, BufReader, ReadBuf};
use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio_rustls::client::TlsStream;

use crate::config::Host;

/// A dead peer is noticed after 30 s of silence and three probes of 10 s.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_COUNT: u32 = 3;
/// Sent bytes that are not acknowledged for this long end the connection. Linux counts those too that a living peer has no room for,
/// since it reads nothing: see `lift_user_timeout`.
const USER_TIMEOUT: Duration = Duration::from_secs(60);

/// A connected socket.
#[derive(Debug)]
pub(super) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// TLS over a socket.
pub(super) type Tls = TlsStream<BufReader<Socket>>;

/// A socket, perhaps inside TLS.
#[derive(Debug)]
pub(super) enum Transport {
    Plain(Socket),
    Tls(Box<Tls>),
}

/// One place to connect to: a name may have several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl Address {
    /// The addresses of a host, in the order of the system's resolver.
    pub(super) async fn of(host: &Host) -> io::Result<Vec<Address>> {
        match host {
            Host::Unix(folder, port) => Ok(vec![Address::Unix(folder.join(format!(".s.PGSQL.{port}")))]),
            Host::Tcp(name, port) => {
                let found: Vec<_> = lookup_host((name.as_str(), *port)).await?.map(Address::Tcp).collect();
                if found.is_empty() {
                    return Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address"));
                }
                Ok(found)
            }
        }
    }
}

impl Socket {
    /// Connects to one address.
    pub(super) async fn connect(address: &Address) -> io::Result<Socket> {
        match address {
            Address::Unix(path) => UnixStream::connect(path).await.map(Socket::Unix),
            Address::Tcp(address) => {
                let stream = TcpStream::connect(address).await?;
                configure(&stream)?;
                Ok(Socket::Tcp(stream))
            }
        }
    }
}

fn configure(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    let keepalive =
        TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(KEEPALIVE_INTERVAL).with_retries(KEEPALIVE_COUNT);
    socket.set_tcp_keepalive(&keepalive)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    Ok(())
}

impl Transport {
    /// The TCP socket below, if it is one.
    pub(super) fn tcp(&self) -> Option<&TcpStream> {
        let socket = match self {
            Transport::Plain(socket) => socket,
            Transport::Tls(stream) => stream.get_ref().0.get_ref(),
        };
        match socket {
            Socket::Tcp(stream) => Some(stream),
            Socket::Unix(_) => None,
        }
    }

    /// Whether one read gives at most one TLS record, however much is there.
    pub(super) fn gives_records(&self) -> bool {
        matches!(self, Transport::Tls(_))
    }

    /// Reads what arrives into `room`, at the end of the stream nothing. TLS gives one record of 16 KiB at a time: takes those that are
    /// there. (An error of a later one comes again at the next read.)
    pub(super) fn poll_receive(
        &mut self,
        context: &mut Context<'_>,
        room: &mut [MaybeUninit<u8>],
    ) -> Poll<io::Result<usize>> {
        let mut buffer = ReadBuf::uninit(room);
        ready!(Pin::new(&mut *self).poll_read(context, &mut buffer))?;
        let mut before = 0;
        while self.gives_records() && buffer.remaining() > 0 && buffer.filled().len() > before {
            before = buffer.filled().len();
            if !matches!(Pin::new(&mut *self).poll_read(context, &mut buffer), Poll::Ready(Ok(()))) {
                break;
            }
        }
        Poll::Ready(Ok(buffer.filled().len()))
    }

    /// Reads more of what is there into `room`, past the runtime's own account of readiness (which stays right: it only looks
    /// once too often). `None` where nothing is there, and under TLS; an error comes again at the next read.
    pub(super) fn receive_now(&self, room: &mut [MaybeUninit<u8>]) -> Option<usize> {
        let Transport::Plain(socket) = self else { return None };
        let socket = match socket {
            Socket::Tcp(stream) => SockRef::from(stream),
            Socket::Unix(stream) => SockRef::from(stream),
        };
        socket.recv(room).ok().filter(|count| *count > 0)
    }

    /// The round trip to the other side, of TCP.
    pub(super) fn round_trip(&self) -> Option<Duration> {
        round_trip(self.tcp()?.as_raw_fd())
    }

    /// No `TCP_USER_TIMEOUT` any more: a peer that reads nothing keeps the connection for as long as it answers the kernel's probes. Does
    /// nothing on a Unix socket.
    pub(super) fn lift_user_timeout(&self) -> io::Result<()> {
        #[cfg(target_os = "linux")]
        if let Some(stream) = self.tcp() {
            SockRef::from(stream).set_tcp_user_timeout(None)?;
        }
        Ok(())
    }

    /// `SO_RCVBUF`: the most that the other side may have under way unread is about half of it. Does nothing on a Unix socket.
    pub(super) fn set_receive_buffer(&self, bytes: usize) -> io::Result<()> {
        self.tcp().map_or(Ok(()), |stream| SockRef::from(stream).set_recv_buffer_size(bytes))
    }

    /// `SO_RCVLOWAT`: the kernel wakes a reader only when this many bytes wait. Does nothing on a Unix socket, which ignores it.
    pub(super) fn set_receive_low_water(&self, bytes: u32) -> io::Result<()> {
        let Some(stream) = self.tcp() else { return Ok(()) };
        set_option(stream.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVLOWAT, bytes)
    }
}

/// The shortest round trip that the kernel has seen: the last ones hold the time that the server took to think, where its
/// acknowledgement came with its answer. A kernel before 4.6 only tells those.
fn round_trip(socket: RawFd) -> Option<Duration> {
    // SAFETY: an all-zero tcp_info is valid, it is plain numbers.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the descriptor is open for the life of the borrowed stream; pointer and length are those of `info`.
    let result =
        unsafe { libc::getsockopt(socket, libc::IPPROTO_TCP, libc::TCP_INFO, (&raw mut info).cast(), &raw mut length) };
    let shortest = if info.tcpi_min_rtt > 0 { info.tcpi_min_rtt } else { info.tcpi_rtt };
    (result == 0).then(|| Duration::from_micros(u64::from(shortest)))
}

fn set_option(socket: RawFd, level: libc::c_int, name: libc::c_int, bytes: u32) -> io::Result<()> {
    let value = bytes.min(i32::MAX as u32) as libc::c_int;
    let length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the descriptor is open for the life of the borrowed stream, and the pointer and the length are those of `value`.
    let result = unsafe { libc::setsockopt(socket, level, name, (&raw const value).cast(), length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

macro_rules! forward {
    ($self:ident, $enum:ident { $($variant:ident),+ }, $stream:ident => $call:expr) => {
        match $self.get_mut() { $($enum::$variant($stream) => $call),+ }
    };
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        forward!(self, Socket { Tcp, Unix }, stream => Pin::new(stream).poll_read(context, buffer))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        forward!(self, Socket { Tcp, Unix }, stream => Pin::new(stream).poll_write(context, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        forward!(self, Socket { Tcp, Unix }, stream => Pin::new(stream).poll_flush(context))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        forward!(self, Socket { Tcp, Unix }, stream => Pin::new(stream).poll_shutdown(context))
    }
}

impl AsyncRead for Transport {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        forward!(self, Transport { Plain, Tls }, stream => Pin::new(stream).poll_read(context, buffer))
    }
}

impl AsyncWrite for Transport {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        forward!(self, Transport { Plain, Tls }, stream => Pin::new(stream).poll_write(context, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        forward!(self, Transport { Plain, Tls }, stream => Pin::new(stream).poll_flush(context))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        forward!(self, Transport { Plain, Tls }, stream => Pin::new(stream).poll_shutdown(context))
    }
}
