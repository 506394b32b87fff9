//! The way to the end: first let running work finish, then stop.

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// How far the process is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Everything is served.
    Running,
    /// Nothing new is taken, running work may finish.
    Draining,
    /// Stop now.
    Stopped,
}

/// Moves the process on; stages never go back.
#[derive(Debug, Clone)]
pub struct Trigger {
    sender: watch::Sender<Stage>,
}

/// Tells how far the process is. Cheap to clone; works in every runtime of the process.
#[derive(Debug, Clone)]
pub struct Drain {
    receiver: watch::Receiver<Stage>,
}

/// A pair of both ends.
pub fn channel() -> (Trigger, Drain) {
    let (sender, receiver) = watch::channel(Stage::Running);
    (Trigger { sender }, Drain { receiver })
}

impl Trigger {
    /// Moves on to `stage`, if it is further than where the process is.
    pub fn advance(&self, stage: Stage) {
        self.sender.send_if_modified(|now| {
            let further = stage > *now;
            if further {
                *now = stage;
            }
            further
        });
    }

    /// Waits for SIGTERM or SIGINT: the first drains, the second stops. Returns after the second.
    ///
    /// # Errors
    /// When the system does not let us listen to signals.
    pub async fn on_signals(self) -> std::io::Result<()> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        for stage in [Stage::Draining, Stage::Stopped] {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            tracing::info!(?stage, "asked to stop");
            self.advance(stage);
        }
        Ok(())
    }
}

impl Drain {
    /// Where the process is now.
    pub fn stage(&self) -> Stage {
        *self.receiver.borrow()
    }

    /// Waits until `stage` is reached. Cancel safe.
    pub async fn reached(&mut self, stage: Stage) {
        // The trigger is gone only when the process is ending anyway.
        let _ = self.receiver.wait_for(|now| *now >= stage).await;
    }
}
