//! A reload: a worker beside the current one, which takes over when it is ready.

use sd_notify::NotifyState;

use super::worker::Worker;
use super::{Asked, MainProcess, Refusal};
use crate::systemd::channel::key;

impl MainProcess {
    /// Starts a worker that is to take over; after the one that is under way, if there is one.
    pub(super) fn reload(&mut self, asked: Asked) {
        if self.stopping || self.current().is_none() {
            let why = if self.stopping { "the service is stopping" } else { "no worker serves yet" };
            let refusal = Refusal { in_short: why.to_owned(), said: why.to_owned() };
            self.answer_refused(&asked, &refusal);
            tracing::warn!("no reload: {why}");
        } else if self.candidate().is_some() {
            self.waiting.push_back(asked);
        } else {
            tracing::info!("reloading");
            let mut states = vec![NotifyState::Reloading, NotifyState::Status("reloading")];
            states.extend(NotifyState::monotonic_usec_now());
            self.systemd.tell(&states);
            self.asked.push(asked);
            self.start_worker();
        }
    }

    /// Ends a reload that changes nothing.
    pub(super) fn refuse(&mut self, refusal: &Refusal) {
        tracing::error!("the reload failed, nothing has changed: {}", refusal.said);
        self.systemd.tell(&[NotifyState::Ready]);
        let asked = std::mem::take(&mut self.asked);
        if let Some(current) = self.current() {
            // Also where nobody asked on the channel: its status tells.
            let text = serde_json::to_string(refusal).unwrap_or_default();
            current.tell(&format!("{}=0\n{}={text}", key::REFUSED, key::TEXT));
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
    match (worker.failed.take(), words) {
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
