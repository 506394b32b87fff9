//! A relay between a driver and the sidecar that keeps every byte the driver receives.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use super::canary;

/// Listens until the test ends.
pub(crate) struct Tap {
    pub(crate) port: u16,
    received: Arc<Mutex<Vec<u8>>>,
}

impl Tap {
    /// In front of a port.
    pub(crate) fn before(upstream: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let port = listener.local_addr().expect("it has an address").port();
        let received = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&received);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(("127.0.0.1", upstream)) else {
                    return;
                };
                let _ = (client.set_nodelay(true), server.set_nodelay(true));
                let (Ok(from_client), Ok(to_server)) = (client.try_clone(), server.try_clone()) else {
                    return;
                };
                let kept = Arc::clone(&kept);
                std::thread::spawn(move || relay(from_client, to_server, |_| {}));
                std::thread::spawn(move || {
                    relay(server, client, |bytes| {
                        kept.lock().expect("nobody panics with it").extend(bytes)
                    });
                });
            }
        });
        Self { port, received }
    }

    /// Fails the test if a canary came through.
    pub(crate) fn assert_clean(&self) {
        let received = self.received.lock().expect("nobody panics with it");
        assert!(!received.is_empty(), "nothing came through the tap");
        assert_eq!(canary::find(&received), None, "a protected value left");
    }
}

fn relay(mut from: TcpStream, mut to: TcpStream, mut seen: impl FnMut(&[u8])) {
    let mut chunk = [0; 65_536];
    while let Ok(count @ 1..) = from.read(&mut chunk) {
        seen(&chunk[..count]);
        if to.write_all(&chunk[..count]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}
