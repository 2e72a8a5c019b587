//! The socket below rumqttc, which flushes after each ack and reads as soon as there is anything: here small
//! writes gather until the next read, which follows as soon as nothing more is asked for, and after a small
//! read the next waits a moment, so that neither an ack nor a message costs system calls of its own.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};

/// What gathers at most; a packet larger than that goes out at once.
const GATHERED: usize = 16 << 10;
/// After a read of less than this the next one waits.
const SMALL: usize = 4 << 10;
/// How long. A message after a pause does not wait.
const REST: Duration = Duration::from_millis(1);

/// A connection that writes when it is read from, when much has gathered, when it is shut down, and what
/// is left when it is dropped.
pub struct Socket {
    stream: TcpStream,
    out: Vec<u8>,
    /// So much of `out` has been written.
    written: usize,
    resting: Option<Pin<Box<Sleep>>>,
}

impl Socket {
    pub fn new(stream: TcpStream) -> Socket {
        Socket { stream, out: Vec::new(), written: 0, resting: None }
    }

    /// Writes what has gathered.
    fn poll_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.out.len() {
            let n = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.out[self.written..]))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += n;
        }
        self.out.clear();
        self.written = 0;
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        // A socket that takes nothing more may still have something to say.
        if let Poll::Ready(Err(error)) = self.poll_out(cx) {
            return Poll::Ready(Err(error));
        }
        if let Some(resting) = &mut self.resting {
            ready!(resting.as_mut().poll(cx));
            self.resting = None;
        }
        let before = into.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, into))?;
        if (1..SMALL).contains(&(into.filled().len() - before)) {
            self.resting = Some(Box::pin(sleep(REST)));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        if self.out.len() + data.len() > GATHERED {
            ready!(self.poll_out(cx))?;
            if data.len() > GATHERED {
                return Pin::new(&mut self.stream).poll_write(cx, data);
            }
        }
        self.out.extend_from_slice(data);
        Poll::Ready(Ok(data.len()))
    }

    /// The next read does it.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_out(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl Drop for Socket {
    /// The goodbye, which nobody reads after.
    fn drop(&mut self) {
        while self.written < self.out.len() {
            match self.stream.try_write(&self.out[self.written..]) {
                Ok(n @ 1..) => self.written += n,
                // The connection is over, or the peer takes nothing.
                _ => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    async fn pair() -> (Socket, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let stream = TcpStream::connect(listener.local_addr().expect("an address")).await.expect("connected");
        (Socket::new(stream), listener.accept().await.expect("accepted").0)
    }

    /// Whether the peer has anything to read now.
    fn heard(peer: &TcpStream) -> bool {
        peer.try_read(&mut [0; 64]).is_ok()
    }

    #[tokio::test]
    async fn acks_gather_until_the_next_read_and_go_out_as_one() {
        let (mut socket, mut peer) = pair().await;
        for id in 0..100u8 {
            socket.write_all(&[0x40, 2, 0, id]).await.expect("taken");
            socket.flush().await.expect("taken");
        }
        assert_eq!(socket.out.len(), 400);
        assert!(!heard(&peer));
        peer.write_all(b"x").await.expect("sent");
        assert_eq!(socket.read_u8().await.expect("read"), b'x');
        assert_eq!(socket.out.len(), 0);
        let mut got = [0; 400];
        peer.read_exact(&mut got).await.expect("all of them");
        assert_eq!(got[396..], [0x40, 2, 0, 99]);
    }

    #[tokio::test]
    async fn what_is_left_goes_out_when_it_is_dropped() {
        let (mut socket, mut peer) = pair().await;
        socket.write_all(&[0xe0, 0]).await.expect("taken");
        drop(socket);
        let mut got = Vec::new();
        peer.read_to_end(&mut got).await.expect("the goodbye");
        assert_eq!(got, [0xe0, 0]);
    }

    #[tokio::test]
    async fn a_peer_that_reads_nothing_holds_up_the_writer_and_loses_nothing() {
        let (mut socket, mut peer) = pair().await;
        let chunk = vec![7; 1000];
        let mut sent = 0;
        // Ends only because the socket's buffers are full.
        while tokio::time::timeout(std::time::Duration::from_millis(200), socket.write_all(&chunk)).await.is_ok() {
            sent += chunk.len();
            assert!(socket.out.len() <= GATHERED);
        }
        let count = tokio::spawn(async move {
            let mut got = Vec::new();
            peer.read_to_end(&mut got).await.expect("all");
            got.len()
        });
        socket.shutdown().await.expect("shut down");
        drop(socket);
        assert_eq!(count.await.expect("counted"), sent);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_writes_arrive_in_order(sizes in prop::collection::vec(0usize..40_000, 0..12)) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let (mut socket, mut peer) = pair().await;
                let all: Vec<u8> = (0..sizes.iter().sum::<usize>()).map(|i| (i % 251) as u8).collect();
                let reading = tokio::spawn(async move {
                    let mut got = Vec::new();
                    peer.read_to_end(&mut got).await.expect("all");
                    got
                });
                let mut rest = &all[..];
                for size in sizes {
                    let (now, later) = rest.split_at(size);
                    socket.write_all(now).await.expect("written");
                    socket.flush().await.expect("flushed");
                    rest = later;
                }
                socket.shutdown().await.expect("shut down");
                drop(socket);
                prop_assert_eq!(reading.await.expect("read"), all);
                Ok(())
            })?;
        }
    }
}
