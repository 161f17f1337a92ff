//! A reload: a worker beside the current one, which takes over when it is ready.

use sd_notify::NotifyState;

use super::worker::Worker;
use super::{Asked, MainProcess, Phase, Refusal};
use crate::event;
use crate::systemd::channel::key;

impl MainProcess {
    /// Starts a worker that is to take over; after the one that is under way, if there is one.
    pub(super) fn reload(&mut self, asked: Asked) {
        if self.is_stopping() || self.current().is_none() {
            let why = if self.is_stopping() { "the service is stopping" } else { "no worker serves yet" };
            let refusal = Refusal { in_short: why.to_owned(), said: why.to_owned() };
            self.answer_refused(&asked, &refusal);
            tracing::warn!(message_id = event::RELOAD_REFUSED, cause = why, "no reload: {why}");
            // systemd waits for the end of a reload that it has asked for by SIGHUP, however that went.
            if self.phase == Phase::Serving {
                self.tell_reloading(None);
                self.systemd.tell(&[NotifyState::Ready]);
            }
        } else if self.candidate().is_some() || self.is_being_announced() {
            self.waiting.push_back(asked);
        } else {
            tracing::info!(message_id = event::RELOAD_BEGUN, "reloading");
            self.tell_reloading(Some("reloading"));
            self.asked.push(asked);
            self.start_worker();
        }
    }

    /// Tells systemd that a reload begins. By the time it knows that its own request has arrived
    /// (systemd.service(5), `Type=notify-reload`).
    fn tell_reloading(&self, status: Option<&str>) {
        let mut told = vec![NotifyState::Reloading];
        told.extend(status.map(NotifyState::Status));
        told.extend(NotifyState::monotonic_usec_now());
        self.systemd.tell(&told);
    }

    /// Ends a reload that changes nothing.
    pub(super) fn refuse(&mut self, refusal: &Refusal) {
        tracing::error!(
            message_id = event::RELOAD_FAILED,
            cause = refusal.in_short,
            "the reload failed, nothing has changed: {}",
            refusal.said
        );
        self.systemd.tell(&[NotifyState::Ready]);
        let asked = std::mem::take(&mut self.asked);
        if let Some(current) = self.current() {
            // Also where nobody asked on the channel: its status tells.
            let text = serde_json::to_string(refusal).unwrap_or_default();
            current.tell(&format!("{}={}\n{}={text}", key::REFUSED, key::NOBODY, key::TEXT));
        }
        for asked in &asked {
            self.answer_refused(asked, refusal);
        }
        self.go_on_reloading();
    }

    pub(super) fn answer_refused(&self, asked: &Asked, refusal: &Refusal) {
        if let (Some((pid, number)), Ok(text)) = (asked, serde_json::to_string(refusal)) {
            self.answer(*pid, &format!("{}={number}\n{}={text}", key::REFUSED, key::TEXT));
        }
    }

    pub(super) fn answer(&self, pid: u32, text: &str) {
        if let Some(worker) = self.workers.iter().find(|worker| worker.pid == pid) {
            worker.tell(text);
        }
    }

    /// Begins the next reload that was asked for. A worker that was replaced meanwhile tells those who asked at it to
    /// ask its successor.
    pub(super) fn go_on_reloading(&mut self) {
        let current = self.current().map(|worker| worker.pid);
        while let Some(asked) = self.waiting.pop_front() {
            if asked.as_ref().is_none_or(|(pid, _)| Some(*pid) == current) {
                return self.reload(asked);
            }
        }
    }
}

/// The reason why a candidate failed: what it said, if it could, and its output on stderr, if any.
pub(super) fn refusal(worker: &mut Worker, how: &str) -> Refusal {
    let words = worker.last_words();
    reason(worker.failed.take(), words, how)
}

fn reason(failed: Option<String>, words: Option<String>, how: &str) -> Refusal {
    match (failed, words) {
        (Some(reason), words) => {
            let said = format!("the new process failed: {}", words.unwrap_or_else(|| reason.clone()));
            Refusal { in_short: reason, said }
        }
        (None, Some(words)) => {
            let first = words.lines().next().unwrap_or_default();
            let more = if words.lines().count() > 1 { "..." } else { "" };
            let in_short = format!("the new process failed: {first}{more}");
            Refusal { in_short, said: format!("the new process failed: {words}") }
        }
        (None, None) => {
            let said = format!("the new process {how} without a word");
            Refusal { in_short: said.clone(), said }
        }
    }
}

#[cfg(test)]
mod tests {
    //! The reason of a failed reload is what the new worker said, else what it wrote, else how it ended.

    use super::*;

    fn said(failed: Option<&str>, words: Option<&str>) -> (String, String) {
        let refusal = reason(failed.map(Into::into), words.map(Into::into), "exited with code 1");
        (refusal.in_short, refusal.said)
    }

    #[test]
    fn a_refusal_says_in_short_what_the_worker_said_and_at_length_what_it_wrote() {
        let both = said(Some("c.toml:1:1: unknown key"), Some("error: unknown key\n --> c.toml:1:1"));
        assert_eq!(both.0, "c.toml:1:1: unknown key");
        assert_eq!(both.1, "the new process failed: error: unknown key\n --> c.toml:1:1");
        assert_eq!(said(Some("why"), None).1, "the new process failed: why");
        assert_eq!(said(None, Some("first\nsecond")).0, "the new process failed: first...");
        assert_eq!(said(None, None).0, "the new process exited with code 1 without a word");
    }
}
