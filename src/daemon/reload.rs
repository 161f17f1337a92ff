//! A reload, as the worker that serves sees it: the main process carries it out, and tells the outcome.
//!
//! The signals child and the control socket ask for one. When it succeeds another worker serves, and this one hands over.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::event;
use crate::main_process::Refusal;
use crate::systemd::channel::{Channel, Message, key};

/// The reason why a daemon without a main process cannot reload.
const ALONE: &str =
    "a reload needs the main process of `Daemon::run_blocking`: stop this one and start it again";

/// A refusal that is not understood: the main process may be another version.
fn unclear() -> Refusal {
    let why = "the reason is in the log of the main process".to_owned();
    Refusal { in_short: why.clone(), said: why }
}

/// The outcome of a reload that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// This process serves now.
    Reloaded(String),
    /// Nothing has changed; the reason.
    Refused(String),
    /// Another reload has replaced this worker meanwhile: its successor is to be asked.
    Moved,
}

/// The requests for reloads.
#[derive(Clone, Debug)]
pub(super) struct Reloads {
    /// The way to the main process; none without one.
    channel: Option<Arc<Channel>>,
    asked: Arc<Mutex<Asked>>,
}

#[derive(Debug, Default)]
struct Asked {
    number: u64,
    waiting: HashMap<u64, oneshot::Sender<Outcome>>,
    /// True once this worker is replaced.
    moved: bool,
}

impl Reloads {
    pub(super) fn new(channel: Option<Arc<Channel>>) -> Self {
        Self { channel, asked: Arc::default() }
    }

    /// Asks for a reload and waits for its outcome.
    pub(super) async fn ask(&self) -> Outcome {
        let Some(channel) = &self.channel else {
            return Outcome::Refused(ALONE.to_owned());
        };
        let (number, answer) = {
            let mut asked = self.asked();
            if asked.moved {
                return Outcome::Moved;
            }
            asked.number += 1;
            let (sender, answer) = oneshot::channel();
            let number = asked.number;
            asked.waiting.insert(number, sender);
            (number, answer)
        };
        if let Err(error) = channel.send(&format!("{}={number}", key::RELOAD), &[]) {
            self.asked().waiting.remove(&number);
            return Outcome::Refused(format!("cannot reach the main process: {error}"));
        }
        answer.await.unwrap_or(Outcome::Moved)
    }

    /// Asks for a reload without waiting for it: its outcome is in the log.
    pub(super) fn ask_for_the_log(&self) {
        let sent = match &self.channel {
            Some(channel) => {
                let request = format!("{}={}", key::RELOAD, key::NOBODY);
                channel.send(&request, &[]).map_err(|error| error.to_string())
            }
            None => Err(ALONE.to_owned()),
        };
        if let Err(why) = sent {
            tracing::warn!(message_id = event::RELOAD_REFUSED, cause = why, "no reload: {why}");
        }
    }

    /// Takes in what the main process said of a reload, if it did. Returns why nothing has changed, on one line.
    pub(super) fn answer(&self, message: &Message) -> Option<String> {
        let text = message.value(key::TEXT).unwrap_or_default();
        let (number, outcome, in_short) = if let Some(number) = message.value(key::RELOADED) {
            (number, Outcome::Reloaded(serde_json::from_str(text).unwrap_or_default()), None)
        } else if let Some(number) = message.value(key::REFUSED) {
            let Refusal { in_short, said } = serde_json::from_str(text).unwrap_or_else(|_| unclear());
            (number, Outcome::Refused(said), Some(in_short))
        } else {
            return None;
        };
        let waiting = number.parse().ok().and_then(|number: u64| self.asked().waiting.remove(&number));
        if let Some(waiting) = waiting {
            // The asking end may be gone.
            let _ = waiting.send(outcome);
        }
        in_short
    }

    /// Sends everybody who still waits to this worker's successor.
    pub(super) fn moved(&self) {
        let mut asked = self.asked();
        asked.moved = true;
        for (_, waiting) in asked.waiting.drain() {
            let _ = waiting.send(Outcome::Moved);
        }
    }

    fn asked(&self) -> MutexGuard<'_, Asked> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    //! Whoever asked is answered.

    use futures_util::poll;

    use super::*;

    #[tokio::test]
    async fn a_refusal_that_is_not_understood_is_a_refusal() {
        let (main_process, end) = Channel::pair().expect("a pair");
        let channel = Arc::new(Channel::adopt(end).expect("the same kind"));
        let reloads = Reloads::new(Some(Arc::clone(&channel)));
        let mut asking = Box::pin(reloads.ask());
        assert!(poll!(&mut asking).is_pending());
        let asked = main_process.receive().await.expect("no error").expect("a message");
        let number = asked.value(key::RELOAD).expect("a request");
        let refusal = format!("{}={number}\n{}={{\"in_sho", key::REFUSED, key::TEXT);
        main_process.send(&refusal, &[]).expect("sent");
        let message = channel.receive().await.expect("no error").expect("a message");
        let Refusal { in_short, said } = unclear();
        assert_eq!(reloads.answer(&message), Some(in_short));
        assert_eq!(poll!(asking), std::task::Poll::Ready(Outcome::Refused(said)));
    }
}
