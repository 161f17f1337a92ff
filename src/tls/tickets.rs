//! Session tickets whose keys can outlive the process: a client that resumes does not notice a restart either.
//!
//! rustls has a ticketer as well, which makes its keys itself and shows them to nobody.

use std::convert::Infallible;
use std::fmt;
use std::sync::{PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::rand;
use rustls::server::ProducesTickets;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop};

/// The time for which a key makes tickets. It opens them for as long again.
const ROTATION: Duration = Duration::from_secs(6 * 60 * 60);
const ACCEPTED: Duration = Duration::from_secs(12 * 60 * 60);
/// The time between two looks for keys that are too old.
const TIDYING: Duration = Duration::from_secs(60);
/// The most keys that are kept. A rotation leaves two; the others are those of workers that made tickets before they had
/// their predecessor's keys: there is room for twelve hours of a reload each minute.
const MAX_KEYS: usize = 1024;
/// A ticket has a client's certificates in it.
const MAX_TICKET: usize = 1 << 16;

const NAME: usize = 16;
const NONCE: usize = 12;

/// One key. Its name stands in each of its tickets.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
struct TicketKey {
    name: [u8; NAME],
    key: [u8; 32],
    /// The time when it was made, in seconds since 1970: it is another process's time as well.
    made: u64,
}

/// The keys, for another process: whoever has them can read what was said on connections that were resumed. The first makes
/// tickets; of the others, those that did so last stand first.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::vec_box, reason = "a key that is moved leaves a copy behind that nobody wipes")]
pub(crate) struct TicketKeys(Vec<Box<TicketKey>>);

impl fmt::Debug for TicketKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TicketKeys").finish_non_exhaustive()
    }
}

/// Makes and opens session tickets.
pub(crate) struct Tickets(RwLock<TicketKeys>);

impl fmt::Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tickets").finish_non_exhaustive()
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// Makes the bytes random; none where there is no randomness.
#[expect(
    clippy::disallowed_methods,
    reason = "`gather_randomness` has asked before, where handshakes are to come"
)]
fn randomize(bytes: &mut [u8]) -> Option<()> {
    rand::fill(bytes).ok()
}

impl TicketKey {
    fn new(now: u64) -> Option<Box<Self>> {
        let mut key = Box::new(Self { name: [0; NAME], key: [0; 32], made: now });
        randomize(&mut key.name)?;
        randomize(&mut key.key)?;
        Some(key)
    }

    /// True if it is younger than that. A clock that was set back makes no key live for ever.
    fn is_younger(&self, age: Duration, now: u64) -> bool {
        now.abs_diff(self.made) < age.as_secs()
    }

    fn aead(&self) -> Option<LessSafeKey> {
        UnboundKey::new(&CHACHA20_POLY1305, &self.key).ok().map(LessSafeKey::new)
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let mut nonce = [0; NONCE];
        randomize(&mut nonce)?;
        let mut ticket = [&self.name[..], &nonce, plain].concat();
        let nonce = Nonce::assume_unique_for_key(nonce);
        let sealed = &mut ticket[NAME + NONCE..];
        let tag = self.aead()?.seal_in_place_separate_tag(nonce, Aad::from(self.name), sealed).ok()?;
        ticket.extend_from_slice(tag.as_ref());
        Some(ticket)
    }
}

impl TicketKeys {
    fn rotate(&mut self, now: u64) {
        if !self.is_fresh(now) {
            self.0.splice(..0, TicketKey::new(now));
        }
        self.tidy(now);
    }

    /// Leaves out those that are too old, and of too many the last.
    fn tidy(&mut self, now: u64) {
        self.0.retain(|key| key.is_younger(ACCEPTED, now));
        self.0.truncate(MAX_KEYS);
    }

    fn is_fresh(&self, now: u64) -> bool {
        self.0.first().is_some_and(|key| key.is_younger(ROTATION, now))
    }
}

impl Tickets {
    /// Without a key: the first ticket makes one, if none has come from another process by then.
    pub(crate) fn new() -> Self {
        Self(RwLock::new(TicketKeys(Vec::new())))
    }

    /// Takes another process's keys as well, as far as they are young enough, and makes tickets with the first of these from
    /// now on: that process, and all that have its keys, can open them.
    pub(crate) fn inherit(&self, inherited: TicketKeys) {
        self.inherit_at(inherited, now());
    }

    fn inherit_at(&self, mut inherited: TicketKeys, now: u64) {
        let mut keys = self.0.write().unwrap_or_else(PoisonError::into_inner);
        keys.0.retain(|own| inherited.0.iter().all(|key| key.name != own.name));
        // Behind the one that makes tickets now: its own did so until now.
        let second = inherited.0.len().min(1);
        inherited.0.splice(second..second, keys.0.drain(..));
        inherited.tidy(now);
        *keys = inherited;
    }

    /// Wipes, until it is dropped, the keys that open no ticket any more: where nobody comes, nothing else does.
    pub(crate) async fn keep_tidy(&self) -> Infallible {
        loop {
            tokio::time::sleep(TIDYING).await;
            self.0.write().unwrap_or_else(PoisonError::into_inner).tidy(now());
        }
    }

    /// The keys, for another process.
    pub(crate) fn keys(&self) -> TicketKeys {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn encrypt_at(&self, plain: &[u8], now: u64) -> Option<Vec<u8>> {
        let keys = self.0.read().unwrap_or_else(PoisonError::into_inner);
        if keys.is_fresh(now) {
            return keys.0.first()?.encrypt(plain);
        }
        drop(keys);
        let mut keys = self.0.write().unwrap_or_else(PoisonError::into_inner);
        keys.rotate(now);
        keys.0.first()?.encrypt(plain)
    }

    fn decrypt_at(&self, ticket: &[u8], now: u64) -> Option<Vec<u8>> {
        if ticket.len() > MAX_TICKET {
            return None;
        }
        let (name, rest) = ticket.split_first_chunk::<NAME>()?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE>()?;
        let keys = self.0.read().unwrap_or_else(PoisonError::into_inner);
        // Its name is no secret, so it may be compared in whatever time.
        let key = keys.0.iter().find(|key| key.name == *name && key.is_younger(ACCEPTED, now))?;
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let mut plain = sealed.to_vec();
        let length = key.aead()?.open_in_place(nonce, Aad::from(*name), &mut plain).ok()?.len();
        plain.truncate(length);
        Some(plain)
    }
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        u32::try_from(ROTATION.as_secs()).unwrap_or(u32::MAX)
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.encrypt_at(plain, now())
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        self.decrypt_at(cipher, now())
    }
}

#[cfg(test)]
mod tests {
    //! Keys change, go on for a while, and end; and no ticket that was not made here is opened.

    use super::*;

    const HOUR: u64 = 60 * 60;

    #[test]
    fn a_ticket_is_opened_for_twelve_hours_at_most_and_for_six_at_least() {
        let tickets = Tickets::new();
        let start = now();
        // The first one makes the key.
        tickets.encrypt_at(b"session", start).expect("a ticket");
        let ticket = tickets.encrypt_at(b"session", start + 5 * HOUR).expect("a ticket");
        for (hours, opens) in [(5, true), (10, true), (11, true), (12, false), (30, false)] {
            let plain = tickets.decrypt_at(&ticket, start + hours * HOUR + 1);
            assert_eq!(plain.as_deref(), opens.then_some(&b"session"[..]), "after {hours} h");
        }
    }

    #[test]
    fn a_key_makes_tickets_for_six_hours() {
        let tickets = Tickets::new();
        let start = now();
        let name = |hours| {
            let ticket = tickets.encrypt_at(b"session", start + hours * HOUR + 1).expect("a ticket");
            ticket[..NAME].to_vec()
        };
        let first = name(0);
        assert_eq!(name(5), first);
        let second = name(6);
        assert_ne!(second, first);
        assert_eq!(name(11), second);
        name(12);
        name(18);
        name(24);
        assert!(tickets.keys().0.len() <= MAX_KEYS);
    }

    #[test]
    fn the_keys_of_another_process_are_taken_as_far_as_they_are_young() {
        let old = Tickets::new();
        let ticket = old.encrypt(b"session").expect("a ticket");
        let keys = postcard::to_allocvec(&old.keys()).expect("they are written");
        let keys: TicketKeys = postcard::from_bytes(&keys).expect("they are read");
        let with = |keys| {
            let tickets = Tickets::new();
            tickets.inherit(keys);
            tickets
        };
        assert_eq!(with(keys.clone()).decrypt(&ticket).as_deref(), Some(&b"session"[..]));
        for made in [0, now() - 13 * HOUR, now() + 13 * HOUR, u64::MAX] {
            let mut keys = keys.clone();
            keys.0[0].made = made;
            let tickets = with(keys);
            assert_eq!(tickets.decrypt(&ticket), None, "made {made}");
            assert!(tickets.encrypt(b"session").is_some(), "with a key of its own");
        }
    }

    #[test]
    fn no_key_is_copied_when_others_come_or_go() {
        let tickets = Tickets::new();
        let place = |tickets: &Tickets, name: &[u8]| {
            let keys = &tickets.0.read().expect("no thread has panicked").0;
            let key: &TicketKey = keys.iter().find(|key| key.name == name).expect("it is there");
            std::ptr::from_ref(key)
        };
        let ticket = tickets.encrypt(b"session").expect("a ticket");
        let at = place(&tickets, &ticket[..NAME]);
        let others = Tickets::new();
        others.encrypt(b"session").expect("a ticket");
        tickets.inherit(others.keys());
        assert_eq!(place(&tickets, &ticket[..NAME]), at);
        tickets.0.write().expect("no thread has panicked").rotate(now() + 7 * HOUR);
        assert_eq!(tickets.keys().0.len(), 3);
        assert_eq!(place(&tickets, &ticket[..NAME]), at);
    }

    #[test]
    fn the_keys_of_another_process_make_the_tickets_and_the_oldest_are_left_out() {
        let tickets = Tickets::new();
        let ticket = tickets.encrypt(b"session").expect("a ticket");
        let others = Tickets::new();
        others.encrypt(b"session").expect("a ticket");
        let mut keys = others.keys();
        let (newest, key) = (now(), keys.0.remove(0));
        let name = |age: u64| u128::from(age).to_be_bytes();
        for age in 0..MAX_KEYS as u64 {
            let mut key = key.clone();
            key.name = name(age);
            key.made = newest - (1 + age);
            keys.0.push(key);
        }
        tickets.inherit(keys);
        assert_eq!(tickets.encrypt(b"session").expect("a ticket")[..NAME], [0; NAME]);
        assert_eq!(tickets.decrypt(&ticket).as_deref(), Some(&b"session"[..]), "its own key is the newest");
        let names: Vec<_> = tickets.keys().0.iter().map(|key| key.name).collect();
        let own = ticket[..NAME].try_into().expect("its length");
        let expected: Vec<_> = [name(0), own].into_iter().chain((1..MAX_KEYS as u64 - 1).map(name)).collect();
        assert_eq!(names, expected);
    }

    #[test]
    fn however_often_it_is_reloaded_a_ticket_is_opened_for_six_hours() {
        for minutes in [60, 10, 1] {
            let mut serves = Tickets::new();
            let mut given = Vec::new();
            for reload in 0..24 * 60 / minutes {
                let [now, until] = [reload, reload + 1].map(|reload| reload * minutes * 60);
                let next = Tickets::new();
                // A client comes before the keys of the predecessor do, and one after.
                given.push((now, next.encrypt_at(b"session", now).expect("a ticket")));
                next.inherit_at(serves.keys(), now);
                given.push((now, next.encrypt_at(b"session", now).expect("a ticket")));
                serves = next;
                given.retain(|(at, ticket)| {
                    let last = at + 6 * HOUR - 1;
                    let opens = last >= until || serves.decrypt_at(ticket, last).is_some();
                    assert!(opens, "reloads each {minutes} min: one that was given after {} min", at / 60);
                    last >= until
                });
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_that_opens_no_ticket_any_more_is_wiped_also_where_nobody_asks_for_another() {
        let tickets = Tickets::new();
        let kept = tickets.encrypt(b"session").expect("a ticket");
        let old = TicketKey::new(now() - 13 * HOUR).expect("random numbers");
        tickets.0.write().expect("no thread has panicked").0.push(old);
        let _ = tokio::time::timeout(2 * TIDYING, tickets.keep_tidy()).await;
        assert_eq!(tickets.keys().0.len(), 1);
        assert!(tickets.decrypt(&kept).is_some());
    }

    #[test]
    fn a_ticket_that_was_changed_is_none() {
        let tickets = Tickets::new();
        let ticket = tickets.encrypt(b"session").expect("a ticket");
        for at in 0..ticket.len() {
            let mut changed = ticket.clone();
            changed[at] ^= 1;
            assert_eq!(tickets.decrypt(&changed), None, "byte {at}");
            assert_eq!(tickets.decrypt(&ticket[..at]), None, "cut at {at}");
        }
        assert_eq!(tickets.decrypt(&vec![0; MAX_TICKET + 1]), None);
        let shown = format!("{tickets:?} {:?}", tickets.keys());
        assert_eq!(shown, "Tickets { .. } TicketKeys { .. }");
    }
}
