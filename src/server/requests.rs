//! The number of requests by route, method and status. A thread counts in memory of its own, at a place that it finds
//! without a lock.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use axum::http::{Method, StatusCode};

use super::route::{RouteId, RouteNames};
use crate::printable::{excerpt_of, printable};

/// The most combinations that are told apart. Those that come later count as route and method `other`: an upstream may
/// invent statuses.
const APART: usize = 1024;

/// The places for combinations: there is always a free one, for there are 901 of route and method `other` (a status has
/// three digits, and there is "none").
const PLACES: usize = 2048;

/// The most of a route's pattern, or of another text of the config's, in a label, in bytes.
const LABEL: usize = 128;

/// The names of the labels.
pub(crate) const ROUTE: &str = "route";
pub(crate) const METHOD: &str = "method";
pub(crate) const CODE: &str = "code";

/// The label of what is not told apart.
pub(crate) const OTHER: &str = "other";

/// The methods that are told apart: those of the registry that RFC 9110, section 16.1.1, has begun, but for those of `WebDAV`.
const METHODS: [Method; 9] = [
    Method::GET,
    Method::HEAD,
    Method::POST,
    Method::PUT,
    Method::DELETE,
    Method::CONNECT,
    Method::OPTIONS,
    Method::TRACE,
    Method::PATCH,
];

/// A text of the config's, or of the program's, as a label: of a length that a successor takes, and fit to be shown.
pub(crate) fn label(text: &str) -> String {
    // First made printable, for escapes are longer.
    excerpt_of(LABEL, &printable(text)).into_owned()
}

/// A route, a method and a status, in one word; 0 is none of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key(u64);

impl Key {
    /// Tells a key from no key.
    const IS_SOME: u64 = 1 << 63;
    const METHOD: u32 = 32;
    const STATUS: u32 = 40;
    /// That of a method, or a route, that is not told apart.
    const OTHER: u8 = u8::MAX;
    const OTHER_ROUTE: u32 = u32::MAX;

    fn new(route: RouteId, method: &Method, status: Option<StatusCode>) -> Self {
        let method = METHODS.iter().position(|known| known == method);
        let method = method.and_then(|index| u8::try_from(index).ok()).unwrap_or(Self::OTHER);
        Self::of(route.bits(), method, status.map_or(0, |status| status.as_u16()))
    }

    fn of(route: u32, method: u8, status: u16) -> Self {
        let (route, method, status) = (u64::from(route), u64::from(method), u64::from(status));
        Self(Self::IS_SOME | status << Self::STATUS | method << Self::METHOD | route)
    }

    /// The same status, of route and method `other`.
    fn not_apart(self) -> Self {
        Self::of(Self::OTHER_ROUTE, Self::OTHER, self.status())
    }

    fn status(self) -> u16 {
        // It was one.
        u16::try_from((self.0 & !Self::IS_SOME) >> Self::STATUS).unwrap_or_default()
    }

    /// Where to look for it first.
    fn place(self) -> usize {
        // Fibonacci hashing: the upper bits of the product depend on all bits of the key.
        usize::try_from(self.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32).unwrap_or_default() % PLACES
    }

    fn labels(self, routes: &RouteNames) -> Labels {
        let [route @ .., method, _, _, _] = self.0.to_le_bytes();
        let route = match u32::from_le_bytes(route) {
            Self::OTHER_ROUTE => OTHER.into(),
            route => label(routes.name(RouteId::from_bits(route))),
        };
        let method = METHODS.get(usize::from(method)).map_or(OTHER, Method::as_str).to_owned();
        let code = match self.status() {
            0 => "none".to_owned(),
            status => status.to_string(),
        };
        Labels { route, method, code }
    }
}

/// A combination, as metrics name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Labels {
    /// The route's pattern, or one of `none`, `router` and [`OTHER`].
    pub(crate) route: String,
    /// The method, or [`OTHER`].
    pub(crate) method: String,
    /// The status, or `none`.
    pub(crate) code: String,
}

/// The place of each combination that there has been. A place keeps its key for ever, so that threads share it without
/// taking it from each other.
#[derive(Debug)]
pub(super) struct Places {
    keys: Box<[AtomicU64]>,
    /// The number of those that are told apart.
    apart: AtomicUsize,
}

impl Places {
    pub(super) fn new() -> Self {
        Self { keys: zeroes(), apart: AtomicUsize::new(0) }
    }

    /// The place of a request.
    fn find(&self, route: RouteId, method: &Method, status: Option<StatusCode>) -> usize {
        let key = Key::new(route, method, status);
        let mut counted = false;
        let place = self.place(key, || {
            counted = self.apart.fetch_update(Relaxed, Relaxed, |n| (n < APART).then_some(n + 1)).is_ok();
            counted
        });
        match place {
            Some((place, is_new)) => {
                if counted && !is_new {
                    // Another thread has just found a place for the same.
                    self.apart.fetch_sub(1, Relaxed);
                }
                place
            }
            None => self.place(key.not_apart(), || true).map_or(0, |(place, _)| place),
        }
    }

    /// The place of a key, and true if it is a new one; that only if it may have it.
    fn place(&self, key: Key, may_be_new: impl FnOnce() -> bool) -> Option<(usize, bool)> {
        let mut may_be_new = Some(may_be_new);
        for place in (0..PLACES).map(|step| (key.place() + step) % PLACES) {
            let mut there = self.keys[place].load(Relaxed);
            if there == 0 {
                if let Some(may_be_new) = may_be_new.take()
                    && !may_be_new()
                {
                    return None;
                }
                match self.keys[place].compare_exchange(0, key.0, Relaxed, Relaxed) {
                    Ok(_) => return Some((place, true)),
                    // Another thread was quicker.
                    Err(taken) => there = taken,
                }
            }
            if there == key.0 {
                return Some((place, false));
            }
        }
        None
    }

    /// The combinations that there have been, with their places.
    pub(super) fn all(&self, routes: &RouteNames) -> impl Iterator<Item = (usize, Labels)> {
        let keys = self.keys.iter().map(|key| Key(key.load(Relaxed))).enumerate();
        keys.filter(|(_, key)| key.0 != 0).map(|(place, key)| (place, key.labels(routes)))
    }
}

/// The requests of one thread, by the places of their combinations.
#[derive(Debug)]
pub(super) struct Requests(Box<[AtomicU64]>);

impl Default for Requests {
    fn default() -> Self {
        Self(zeroes())
    }
}

impl Requests {
    /// Counts a request.
    pub(super) fn add(&self, places: &Places, route: RouteId, method: &Method, status: Option<StatusCode>) {
        self.0[places.find(route, method, status)].fetch_add(1, Relaxed);
    }

    /// Those of a place.
    pub(super) fn at(&self, place: usize) -> u64 {
        self.0[place].load(Relaxed)
    }

    /// All of them.
    pub(super) fn total(&self) -> u64 {
        self.0.iter().map(|number| number.load(Relaxed)).sum()
    }
}

fn zeroes() -> Box<[AtomicU64]> {
    std::iter::repeat_with(AtomicU64::default).take(PLACES).collect()
}

#[cfg(test)]
mod tests {
    //! Each combination is counted as what it is, and more of them than anyone has take no more memory.

    use super::*;

    fn counted(routes: usize, asked: &[(usize, &str, u16)]) -> Vec<(String, u64)> {
        let names: Vec<_> = (0..routes).map(|n| format!("/{n}/*")).collect();
        let names = RouteNames::new(names.iter().map(|name| &**name));
        let (places, requests) = (Places::new(), Requests::default());
        for (route, method, status) in asked {
            let method = method.parse().expect("a method");
            requests.add(&places, RouteId::of_config(*route), &method, StatusCode::from_u16(*status).ok());
        }
        assert_eq!(requests.total(), asked.len() as u64);
        let shown = |labels: Labels| format!("{} {} {}", labels.method, labels.route, labels.code);
        places.all(&names).map(|(place, labels)| (shown(labels), requests.at(place))).collect()
    }

    #[test]
    fn requests_are_told_apart_by_route_method_and_status() {
        let asked = [
            (0, "GET", 200),
            (0, "GET", 200),
            (1, "GET", 200),
            (0, "PATCH", 999),
            (1, "BREW", 418),
            (1, "GET", 0),
        ];
        let mut counted = counted(2, &asked);
        counted.sort();
        let expected = [
            ("GET /0/* 200", 2),
            ("GET /1/* 200", 1),
            ("GET /1/* none", 1),
            ("PATCH /0/* 999", 1),
            ("other /1/* 418", 1),
        ];
        assert_eq!(counted, expected.map(|(labels, number)| (labels.to_owned(), number)));
    }

    #[test]
    fn a_combination_takes_one_place_however_many_threads_have_it_at_once() {
        for _ in 0..200 {
            let (places, barrier) = (Places::new(), std::sync::Barrier::new(2));
            let find_all = || {
                barrier.wait();
                for status in 100..1000 {
                    places.find(RouteId::of_config(0), &Method::GET, StatusCode::from_u16(status).ok());
                }
            };
            std::thread::scope(|scope| {
                scope.spawn(find_all);
                scope.spawn(find_all);
            });
            assert_eq!(places.apart.load(Relaxed), 900);
        }
    }

    #[test]
    fn a_label_is_short_and_printable_whatever_the_config_says() {
        assert_eq!(label("/app/*"), "/app/*");
        let label = label(&"\u{9b}".repeat(1000));
        assert!(label.len() < 256 && printable(&label) == label, "{label}");
    }

    #[test]
    fn more_combinations_than_are_told_apart_are_counted_by_their_status() {
        let asked: Vec<_> =
            (0..3).flat_map(|route| (100..1000).map(move |status| (route, "GET", status))).collect();
        let counted = counted(3, &asked);
        let (apart, other): (Vec<_>, Vec<_>) =
            counted.iter().partition(|(labels, _)| !labels.starts_with("other other "));
        assert_eq!(apart.len(), APART);
        assert_eq!(other.iter().map(|(_, number)| number).sum::<u64>(), (asked.len() - APART) as u64);
        assert!(other.len() <= 901, "{}", other.len());
    }
}
