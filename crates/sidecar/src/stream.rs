//! One side of a connection: socket, what was read, what is to be written. Holds no buffer while nothing is under way.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::rewound::Rewound;

/// Read at once from a socket: at most this much.
const READ_MAX: usize = 64 * 1024;
/// Room for the first read after a pause.
const READ_FIRST: usize = 8 * 1024;
/// Pieces up to this size are copied together; longer ones are sent from where they are.
const COPIED_MAX: usize = 4 * 1024;
/// Pieces in one vectored write.
const PIECES_MAX: usize = 16;
/// While more than this waits to be written to one side, nothing is read from the other.
pub const WAITING_MAX: usize = 256 * 1024;
/// How long a peer that was told the end may take to close its side.
const LINGER: Duration = Duration::from_secs(2);

/// A socket, with TLS or without.
#[derive(Debug)]
pub enum Stream {
    /// As it is.
    Plain(TcpStream),
    /// TLS, we are the server.
    Server(Box<tokio_rustls::server::TlsStream<Rewound>>),
    /// TLS, we are the client.
    Client(Box<tokio_rustls::client::TlsStream<TcpStream>>),
}

/// Sets what every socket of ours has: no delay, and keep-alive so that a peer that vanished is noticed.
///
/// # Errors
/// From the system.
pub fn tune(socket: &TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(60))
        .with_interval(Duration::from_secs(15))
        .with_retries(4);
    SockRef::from(socket).set_tcp_keepalive(&keepalive)
}

impl Stream {
    /// The socket below.
    pub fn socket(&self) -> &TcpStream {
        match self {
            Self::Plain(socket) => socket,
            Self::Server(tls) => tls.get_ref().0.socket(),
            Self::Client(tls) => tls.get_ref().0,
        }
    }

    /// TLS is on.
    pub fn is_encrypted(&self) -> bool {
        match self {
            Self::Plain(_) => false,
            Self::Server(_) | Self::Client(_) => true,
        }
    }

    fn poll_write_pieces(
        &mut self,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self {
            Self::Plain(socket) => Pin::new(socket).poll_write_vectored(context, pieces),
            Self::Server(tls) => Pin::new(tls).poll_write_vectored(context, pieces),
            Self::Client(tls) => Pin::new(tls).poll_write_vectored(context, pieces),
        }
    }

    fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(socket) => Pin::new(socket).poll_flush(context),
            Self::Server(tls) => Pin::new(tls).poll_flush(context),
            Self::Client(tls) => Pin::new(tls).poll_flush(context),
        }
    }

    fn poll_shutdown(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(socket) => Pin::new(socket).poll_shutdown(context),
            Self::Server(tls) => Pin::new(tls).poll_shutdown(context),
            Self::Client(tls) => Pin::new(tls).poll_shutdown(context),
        }
    }
}

/// What waits to be written.
#[derive(Debug, Default)]
struct Waiting {
    pieces: VecDeque<Bytes>,
    /// Small pieces, copied together, behind all `pieces`.
    tail: BytesMut,
    length: usize,
}

impl Waiting {
    fn push(&mut self, bytes: Bytes) {
        self.length += bytes.len();
        if bytes.len() <= COPIED_MAX {
            self.tail.extend_from_slice(&bytes);
        } else {
            self.seal();
            self.pieces.push_back(bytes);
        }
    }

    fn seal(&mut self) {
        if !self.tail.is_empty() {
            let tail = std::mem::take(&mut self.tail);
            self.pieces.push_back(tail.freeze());
        }
    }

    fn written(&mut self, mut count: usize) {
        self.length = self.length.saturating_sub(count);
        while count > 0 {
            let Some(front) = self.pieces.front_mut() else {
                return;
            };
            if front.len() > count {
                drop(front.split_to(count));
                return;
            }
            count -= front.len();
            self.pieces.pop_front();
        }
    }
}

/// One side of a connection.
#[derive(Debug)]
pub struct Leg {
    stream: Stream,
    /// Read and not used yet.
    pub received: BytesMut,
    waiting: Waiting,
    needs_flush: bool,
    ended: bool,
    /// Room made for the next read: grows while reads fill it.
    room: usize,
}

impl Leg {
    /// Around a connected socket.
    pub fn new(stream: Stream) -> Self {
        Self {
            stream,
            received: BytesMut::new(),
            waiting: Waiting::default(),
            needs_flush: false,
            ended: false,
            room: READ_FIRST,
        }
    }

    /// The socket.
    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Takes the socket out, for a TLS handshake. Only where nothing was read ahead.
    pub fn into_stream(self) -> Stream {
        self.stream
    }

    /// The socket and what was read ahead.
    pub fn into_parts(self) -> (Stream, BytesMut) {
        (self.stream, self.received)
    }

    /// The other side's address.
    pub fn peer(&self) -> Option<SocketAddr> {
        self.stream.socket().peer_addr().ok()
    }

    /// Queues bytes; [`Self::poll_flush`] writes them.
    pub fn send(&mut self, bytes: Bytes) {
        self.waiting.push(bytes);
    }

    /// Queues what `write` appends.
    pub fn send_with<E>(&mut self, write: impl FnOnce(&mut BytesMut) -> Result<(), E>) -> Result<(), E> {
        let before = self.waiting.tail.len();
        let written = write(&mut self.waiting.tail);
        self.waiting.length += self.waiting.tail.len().saturating_sub(before);
        written
    }

    /// Bytes queued and not written yet.
    pub fn waiting(&self) -> usize {
        self.waiting.length
    }

    /// The other side has closed its direction.
    pub fn ended(&self) -> bool {
        self.ended
    }

    /// Writes what is queued. Ready when all of it is written.
    pub fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.waiting.seal();
        while !self.waiting.pieces.is_empty() {
            let mut slices = [IoSlice::new(&[]); PIECES_MAX];
            for (slice, piece) in slices.iter_mut().zip(&self.waiting.pieces) {
                *slice = IoSlice::new(piece);
            }
            let count = self.waiting.pieces.len().min(PIECES_MAX);
            let slices = slices.get(..count).unwrap_or_default();
            let written = ready!(self.stream.poll_write_pieces(context, slices))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.waiting.written(written);
            self.needs_flush = true;
        }
        if self.needs_flush {
            ready!(self.stream.poll_flush(context))?;
            self.needs_flush = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Writes all that is queued. Cancel safe: what was not written stays queued.
    ///
    /// # Errors
    /// From the socket.
    pub async fn flush(&mut self) -> io::Result<()> {
        std::future::poll_fn(|context| self.poll_flush(context)).await
    }

    /// Reads once, to the end of [`Self::received`]. 0: the other side has closed its direction.
    pub fn poll_fill(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let count = match &mut self.stream {
            Stream::Plain(socket) => loop {
                // Memory is taken only once something is there; what is wrong with the socket, the read says.
                let _ = ready!(socket.poll_read_ready(context));
                if self.received.capacity() - self.received.len() < self.room / 2 {
                    self.received.reserve(self.room);
                }
                let room = self.received.capacity() - self.received.len();
                match socket.try_read_buf(&mut (&mut self.received).limit(READ_MAX)) {
                    Ok(count) => {
                        if count == room {
                            self.room = (self.room * 2).min(READ_MAX);
                        } else if count < self.room / 4 {
                            self.room = (self.room / 2).max(READ_FIRST);
                        }
                        break count;
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        if self.received.is_empty() {
                            self.received = BytesMut::new();
                        }
                    }
                    Err(error) => return Poll::Ready(Err(error)),
                }
            },
            Stream::Server(tls) => ready!(read_tls(Pin::new(tls), context, &mut self.received))?,
            Stream::Client(tls) => ready!(read_tls(Pin::new(tls), context, &mut self.received))?,
        };
        self.ended = count == 0;
        Poll::Ready(Ok(count))
    }

    /// Reads once; see [`Self::poll_fill`]. Cancel safe.
    ///
    /// # Errors
    /// From the socket.
    pub async fn fill(&mut self) -> io::Result<usize> {
        std::future::poll_fn(|context| self.poll_fill(context)).await
    }

    /// Gives the buffers back where they are empty. To be called before a wait that may be long.
    pub fn forget_empty(&mut self) {
        if self.received.is_empty() && self.received.capacity() > 0 {
            self.received = BytesMut::new();
        }
        if self.waiting.tail.is_empty() && self.waiting.tail.capacity() > 0 {
            self.waiting.tail = BytesMut::new();
        }
    }

    /// Closes our direction after all that is queued.
    ///
    /// # Errors
    /// From the socket.
    pub async fn shutdown(&mut self) -> io::Result<()> {
        self.flush().await?;
        std::future::poll_fn(|context| self.stream.poll_shutdown(context)).await
    }

    /// Writes what is queued, closes our direction and waits a moment for the other side to close its own: a socket
    /// closed with unread bytes is reset, and the last message would be lost with it.
    pub async fn finish(mut self) {
        let end = async {
            self.shutdown().await?;
            loop {
                self.received.clear();
                if self.fill().await? == 0 {
                    return io::Result::Ok(());
                }
            }
        };
        // Whatever goes wrong here, the connection is over.
        let _ = tokio::time::timeout(LINGER, end).await;
    }
}

fn read_tls<T: AsyncRead>(
    tls: Pin<&mut T>,
    context: &mut Context<'_>,
    buffer: &mut BytesMut,
) -> Poll<io::Result<usize>> {
    // A record holds 16 KiB at most. The stack serves as the place to read into, so an idle connection holds none.
    let mut space = [0_u8; 16 * 1024];
    let mut read = ReadBuf::new(&mut space);
    ready!(tls.poll_read(context, &mut read))?;
    buffer.extend_from_slice(read.filled());
    Poll::Ready(Ok(read.filled().len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    async fn pair() -> (Leg, Leg) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
        (
            Leg::new(Stream::Plain(near.unwrap())),
            Leg::new(Stream::Plain(far.unwrap().0)),
        )
    }

    #[tokio::test]
    async fn pieces_of_all_sizes_arrive_in_order() {
        let (mut near, mut far) = pair().await;
        let mut expected = Vec::new();
        for index in 0..200_usize {
            let piece = vec![index as u8; (index * 97) % 9000];
            expected.extend_from_slice(&piece);
            near.send(Bytes::from(piece));
        }
        assert_eq!(near.waiting(), expected.len());
        let write = async {
            near.flush().await.unwrap();
            near.shutdown().await.unwrap();
        };
        let read = async {
            while far.fill().await.unwrap() > 0 {}
            far.received.clone()
        };
        let ((), received) = tokio::join!(write, read);
        assert_eq!(received, expected);
        assert!(far.ended());
        assert_eq!(near.waiting(), 0);
    }

    #[tokio::test]
    async fn an_idle_leg_holds_no_buffer() {
        let (mut near, mut far) = pair().await;
        near.send(Bytes::from_static(b"hello"));
        near.flush().await.unwrap();
        far.fill().await.unwrap();
        far.received.clear();
        far.forget_empty();
        let waited = tokio::time::timeout(Duration::from_millis(1), far.fill()).await;
        assert!(waited.is_err());
        assert_eq!(far.received.capacity(), 0);
    }
}
