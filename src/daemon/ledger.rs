//! Counts that go on from one process to the next: what this process has counted, what its predecessors had, and what its
//! successor has been told.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tokio::time::{Duration, Instant};

use super::exposition::Metric;
use crate::handover::parcel::{Count, CountsNote};
use crate::printable::printable;
use crate::server::requests;

/// A counter: its metric, and the values of its labels.
pub(super) type Series = (&'static str, Vec<String>);

/// Counters and what they have come to.
pub(super) type Counts = BTreeMap<Series, u64>;

/// The most series of requests that are taken from predecessors. What is beyond counts as `other`, or is lost.
const SERIES: usize = 2048;

/// The same of every other metric, each with room of its own. What is beyond is lost.
const FEW_SERIES: usize = 256;

/// The longest that a predecessor which lives is waited for: it has told, or has failed to, after a third of that (the time
/// in which its listeners close, and in which it is given room in the mailbox, in `tree.rs` and `metrics.rs`).
const LONGEST_WAIT: Duration = Duration::from_secs(12);

/// The longest value of a label that is taken from a predecessor, in bytes.
const VALUE: usize = 256;

/// The ledger of a process.
#[derive(Debug)]
pub(super) struct Ledger {
    /// The metrics whose counts are taken: another version may have others.
    known: fn(&str) -> Option<&'static Metric>,
    pages: Mutex<Pages>,
    /// True once all has come that predecessors had counted when they handed over.
    settled: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct Pages {
    /// What predecessors had counted.
    inherited: Counts,
    /// What this process has told its successor; none before it hands over.
    told: Option<Counts>,
    /// The predecessors whose first word is waited for. Below 0 where it has come before it was.
    awaited: i64,
    /// The time at which one was added to these last, or the mailbox was looked into.
    since: Option<Instant>,
    /// The predecessors that are not waited for any more, and have not told since.
    given_up: i64,
    /// True once the mailbox has been looked into.
    looked: bool,
}

impl Ledger {
    /// An empty one. `looked` is true if no mailbox can hold anything yet.
    pub(super) fn new(known: fn(&str) -> Option<&'static Metric>, looked: bool) -> Self {
        let pages = Pages { looked, ..Pages::default() };
        Self { known, settled: watch::Sender::new(looked), pages: Mutex::new(pages) }
    }

    /// A predecessor still serves, and is going to tell what it has counted.
    pub(super) fn await_predecessor(&self) {
        self.change(|pages| pages.awaits(1));
    }

    /// The mailbox has been looked into.
    pub(super) fn looked(&self) {
        self.change(|pages| {
            pages.looked = true;
            pages.since = Some(Instant::now());
        });
    }

    /// True if a predecessor has been waited for longer than any needs that is going to tell.
    pub(super) fn is_overdue(&self) -> bool {
        self.pages().since.is_some_and(|since| since.elapsed() > LONGEST_WAIT)
    }

    /// Nobody is waited for any more. What they had counted is lost, also if it comes after all: who has been shown counters
    /// that begin anew would take it for as many new requests.
    pub(super) fn give_up(&self) {
        self.change(|pages| {
            pages.given_up += pages.awaited.max(0);
            pages.awaited = pages.awaited.min(0);
        });
    }

    /// A predecessor has told what this version does not understand: nobody needs to wait for it.
    pub(super) fn not_understood(&self) {
        self.change(|pages| pages.awaited -= i64::from(pages.awaited > 0));
    }

    /// Returns once all has come that predecessors had counted when they handed over.
    pub(super) async fn settled(&self) {
        // The sender lives as long as `self`, so the wait cannot fail.
        let _ = self.settled.subscribe().wait_for(|settled| *settled).await;
    }

    fn change<T>(&self, change: impl FnOnce(&mut Pages) -> T) -> T {
        let mut pages = self.pages();
        let changed = change(&mut pages);
        let settled = pages.looked && pages.awaited <= 0;
        self.settled.send_if_modified(|now| std::mem::replace(now, settled) != settled);
        changed
    }

    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what a predecessor tells.
    pub(super) fn inherit(&self, note: CountsNote) {
        let CountsNote { first, awaited, counts } = note;
        let lost = self.change(|pages| {
            if first && pages.given_up > 0 {
                pages.given_up += i64::from(awaited) - 1;
                return 0;
            }
            if first {
                pages.awaits(i64::from(awaited));
                pages.awaited -= 1;
            }
            counts.iter().filter(|count| !self.add(&mut pages.inherited, count)).count()
        });
        if lost > 0 {
            tracing::warn!(
                "{lost} counters of the predecessor are unknown to this version, or too many: they are lost"
            );
        }
    }

    /// Adds to a counter. False if it is none of those that are known.
    fn add(&self, counts: &mut Counts, Count { name, labels, value }: &Count) -> bool {
        let Some(metric) = (self.known)(name).filter(|metric| metric.kind.is_inherited()) else {
            return false;
        };
        if labels.len() != metric.labels.len() || !labels.iter().all(|label| is_label(label)) {
            return false;
        }
        let mut series = (metric.name, labels.clone());
        let is_requests = *metric.labels == [requests::ROUTE, requests::METHOD, requests::CODE];
        let room = if is_requests { SERIES } else { FEW_SERIES };
        let is_full = counts.len() >= room && of(metric.name, counts).count() >= room;
        if is_full && !counts.contains_key(&series) {
            if !is_requests {
                return false;
            }
            series.1[..2].fill_with(|| requests::OTHER.to_owned());
            // There are few of these.
            if !(labels[2] == "none" || labels[2].len() == 3 && labels[2].bytes().all(|b| b.is_ascii_digit()))
            {
                return false;
            }
        }
        let count = counts.entry(series).or_default();
        *count = count.saturating_add(*value);
        true
    }

    /// The counts to be shown, given what this process has counted itself. Once it has told its successor they are what that
    /// one knows: whoever has seen them there must not see less here, nor the other way round.
    pub(super) fn shown(&self, own: impl FnOnce() -> Counts) -> Counts {
        let pages = self.pages();
        match &pages.told {
            Some(told) => told.clone(),
            None => pages.all(own()),
        }
    }

    /// Tells the successor what it has not been told yet, by `put`, given what this process has counted itself.
    ///
    /// # Errors
    /// What `put` returns; then nothing has been told.
    pub(super) fn tell<E>(
        &self,
        own: impl FnOnce() -> Counts,
        put: impl FnOnce(CountsNote) -> Result<(), E>,
    ) -> Result<(), E> {
        // All under the lock, so that nobody is shown meanwhile what the successor does not get to know.
        let mut pages = self.pages();
        let all = pages.all(own());
        let before =
            |series| pages.told.as_ref().and_then(|told| told.get(series)).copied().unwrap_or_default();
        let counts = all.iter().map(|(series, value)| (series, value.saturating_sub(before(series))));
        let counts: Vec<_> = counts
            .filter(|(_, value)| *value > 0)
            .map(|((name, labels), value)| Count { name: (*name).to_owned(), labels: labels.clone(), value })
            .collect();
        let first = pages.told.is_none();
        if first || !counts.is_empty() {
            let awaited = u32::try_from(pages.awaited).unwrap_or_default();
            put(CountsNote { first, awaited: if first { awaited } else { 0 }, counts })?;
        }
        pages.told = Some(all);
        Ok(())
    }
}

/// The counts of a metric.
pub(super) fn of<'a>(name: &'static str, counts: &'a Counts) -> impl Iterator<Item = (&'a [String], u64)> {
    let all = counts.range((name, Vec::new())..).take_while(move |((other, _), _)| *other == name);
    all.map(|((_, labels), count)| (labels.as_slice(), *count))
}

/// True of a value that this program may have given a label: short, and fit to be shown.
fn is_label(value: &str) -> bool {
    value.len() <= VALUE && printable(value) == value
}

impl Pages {
    /// So many more predecessors are waited for.
    fn awaits(&mut self, predecessors: i64) {
        self.awaited += predecessors;
        if predecessors > 0 {
            self.since = Some(Instant::now());
        }
    }

    /// What there is in all, given what this process has counted itself.
    fn all(&self, own: Counts) -> Counts {
        let mut all = own;
        for (series, value) in &self.inherited {
            let count = all.entry(series.clone()).or_default();
            *count = count.saturating_add(*value);
        }
        all
    }
}

#[cfg(test)]
mod tests {
    //! Over any chain of processes each count is there once, and none is seen to go down.

    use proptest::prelude::*;
    use tokio::time::{advance, timeout};

    use super::super::exposition::Kind;
    use super::*;

    const COUNTED: Metric =
        Metric { name: "a_total", kind: Kind::Counter, labels: &["way"], help: "Counted." };
    const REQUESTS: Metric = Metric {
        name: "requests_total",
        kind: Kind::Counter,
        labels: &[requests::ROUTE, requests::METHOD, requests::CODE],
        help: "Requests.",
    };
    const CUT: Metric = Metric { name: "cut_total", kind: Kind::Counter, labels: &[], help: "Cut." };
    const NOW: Metric = Metric { name: "now", kind: Kind::Gauge, labels: &[], help: "Now." };

    fn known(name: &str) -> Option<&'static Metric> {
        [&COUNTED, &REQUESTS, &CUT, &NOW].into_iter().find(|metric| metric.name == name)
    }

    fn counts(value: u64) -> Counts {
        [((COUNTED.name, vec!["up".to_owned()]), value)].into()
    }

    fn note(ledger: &Ledger, value: u64) -> CountsNote {
        let mut told = None;
        let put = |note| -> Result<(), ()> {
            told = Some(note);
            Ok(())
        };
        ledger.tell(|| counts(value), put).expect("it can be told");
        told.unwrap_or_default()
    }

    fn of(note: CountsNote) -> Ledger {
        let ledger = Ledger::new(known, true);
        ledger.inherit(note);
        ledger
    }

    #[test]
    fn what_is_told_twice_is_the_difference() {
        let first = Ledger::new(known, true);
        let second = of(note(&first, 5));
        assert_eq!(second.shown(|| counts(2)), counts(7));
        assert_eq!(first.shown(|| counts(6)), counts(5), "what the successor knows");
        second.inherit(note(&first, 9));
        assert_eq!(note(&first, 9), CountsNote::default(), "there is nothing more");
        assert_eq!(second.shown(|| counts(2)), counts(11));
        let third = of(note(&second, 2));
        assert_eq!(third.shown(Counts::new), counts(11));
    }

    #[test]
    fn what_could_not_be_told_is_told_next_time() {
        let ledger = Ledger::new(known, true);
        assert_eq!(ledger.tell(|| counts(5), |_| Err("full")), Err("full"));
        assert_eq!(ledger.shown(|| counts(6)), counts(6));
        assert!(note(&ledger, 7).first);
        assert_eq!(ledger.shown(Counts::new), counts(7));
    }

    #[test]
    fn strangers_are_not_taken_and_what_is_too_much_counts_as_other() {
        let count = |name: &str, labels: &[&str]| Count {
            name: name.to_owned(),
            labels: labels.iter().map(|label| (*label).to_owned()).collect(),
            value: u64::MAX,
        };
        let strangers = [
            count("unknown_total", &[]),
            count("now", &[]),
            count("a_total", &[]),
            count("a_total", &["x", "y"]),
            count("a_total", &[&"x".repeat(VALUE + 1)]),
            count("a_total", &["\u{1b}[2J"]),
        ];
        let ledger = of(CountsNote { counts: strangers.into(), ..CountsNote::default() });
        assert_eq!(ledger.shown(Counts::new), Counts::new());
        let many = (0..3 * SERIES).map(|n| count(REQUESTS.name, &[&format!("/{n}"), "GET", "200"])).collect();
        ledger.inherit(CountsNote { counts: many, ..CountsNote::default() });
        let shown = ledger.shown(Counts::new);
        assert_eq!(shown.len(), SERIES + 1);
        assert!(shown.contains_key(&(REQUESTS.name, ["other", "other", "200"].map(Into::into).into())));
        let others = (0..SERIES).map(|n| count(REQUESTS.name, &["/", "GET", &format!("{n:05}")])).collect();
        ledger.inherit(CountsNote { counts: others, ..CountsNote::default() });
        assert_eq!(ledger.shown(Counts::new).len(), SERIES + 1);
        // They take no room from others, nor those from each other.
        let few = (0..2 * FEW_SERIES).map(|n| count(COUNTED.name, &[&n.to_string()])).collect();
        ledger.inherit(CountsNote { counts: few, ..CountsNote::default() });
        ledger.inherit(CountsNote { counts: vec![count(CUT.name, &[])], ..CountsNote::default() });
        let shown = ledger.shown(Counts::new);
        assert_eq!(shown.len(), SERIES + 1 + FEW_SERIES + 1);
        assert!(shown.contains_key(&(CUT.name, Vec::new())));
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_settled_once_every_predecessor_that_is_waited_for_has_told() {
        let is_settled =
            async |ledger: &Ledger| timeout(Duration::from_secs(1), ledger.settled()).await.is_ok();
        let ledger = Ledger::new(known, false);
        assert!(!is_settled(&ledger).await, "what is in the mailbox?");
        ledger.looked();
        assert!(is_settled(&ledger).await);
        ledger.await_predecessor();
        assert!(!is_settled(&ledger).await);
        ledger.inherit(CountsNote::default());
        assert!(!is_settled(&ledger).await, "that was another one's last word");
        // It has taken over from one that it did not hear of.
        ledger.inherit(CountsNote { first: true, awaited: 1, counts: Vec::new() });
        assert!(!is_settled(&ledger).await);
        ledger.inherit(CountsNote { first: true, ..CountsNote::default() });
        assert!(is_settled(&ledger).await);
        ledger.await_predecessor();
        ledger.not_understood();
        assert!(is_settled(&ledger).await, "of another version");
        ledger.not_understood();
        ledger.await_predecessor();
        assert!(!is_settled(&ledger).await, "of another predecessor");
        assert_eq!(note(&ledger, 0).awaited, 1);
        ledger.give_up();
        assert!(is_settled(&ledger).await);
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_after_it_was_given_up_is_not_added_to_counters_that_have_begun_anew() {
        let ledger = Ledger::new(known, true);
        ledger.await_predecessor();
        assert!(!ledger.is_overdue());
        advance(LONGEST_WAIT * 2).await;
        assert!(ledger.is_overdue());
        ledger.await_predecessor();
        assert!(!ledger.is_overdue(), "the time is the last one's");
        ledger.give_up();
        assert_eq!(ledger.shown(|| counts(2)), counts(2));
        let predecessor = Ledger::new(known, true);
        ledger.inherit(note(&predecessor, 100));
        assert_eq!(ledger.shown(|| counts(2)), counts(2), "it was given up");
        ledger.inherit(note(&predecessor, 103));
        assert_eq!(ledger.shown(|| counts(2)), counts(5), "what it has finished since");
        ledger.inherit(note(&Ledger::new(known, true), 100));
        ledger.inherit(note(&Ledger::new(known, true), 100));
        assert_eq!(ledger.shown(|| counts(2)), counts(105), "that one nobody had waited for");
    }

    proptest! {
        #[test]
        fn nothing_is_lost_or_counted_twice_over_a_chain_of_processes(
            own in proptest::collection::vec((0..100u64, 0..100u64), 1..6),
        ) {
            let ledgers: Vec<_> = own.iter().map(|_| Ledger::new(known, true)).collect();
            for (n, (before, _)) in own.iter().enumerate().take(own.len() - 1) {
                ledgers[n + 1].inherit(note(&ledgers[n], *before));
            }
            // Each one's last word reaches whoever takes at that time: here the last one.
            for (n, (before, after)) in own.iter().enumerate().take(own.len() - 1) {
                ledgers[own.len() - 1].inherit(note(&ledgers[n], before + after));
            }
            let sum: u64 = own.iter().map(|(before, after)| before + after).sum();
            let last = own[own.len() - 1];
            let shown = ledgers[own.len() - 1].shown(|| counts(last.0 + last.1));
            prop_assert_eq!(shown, counts(sum));
        }
    }
}
