//! The place of each value in a config's file, for the rules that know values by their keys alone.

use std::collections::HashMap;

use super::diagnostic::{Mistake, Span};
use crate::rules::Violation;

/// The places of all values that are given, by their keys: `http.listen[0]`.
#[derive(Default)]
pub(super) struct Places {
    given: HashMap<String, Span>,
    /// The keys of values that already have a mistake.
    refused: Vec<String>,
}

impl Places {
    /// Notes that a value stands at `span`.
    pub(super) fn give(&mut self, key: impl Into<String>, span: Span) {
        self.given.insert(key.into(), span);
    }

    /// Notes that the value at a key already has a mistake: the default in its place is held to no rule.
    pub(super) fn refuse(&mut self, key: impl Into<String>) {
        self.refused.push(key.into());
    }

    /// The mistake in the file that a violation is; none if it only follows from another mistake.
    pub(super) fn mistake(&self, violation: Violation) -> Option<Mistake> {
        let Violation { key, what, expected, help, also } = violation;
        let mut keys = std::iter::once(&key).chain(also.as_ref().map(|(key, _)| key));
        if keys.any(|key| self.is_refused(key)) {
            return None;
        }
        let place = |key: &str| self.given.get(key).cloned();
        let mistake = |span| Mistake::new(span, what, format!("expected {expected}")).help(help);
        let default =
            |key: &str| format!("the other is the default of `{}`, which is not given", list_of(key));
        Some(match (place(&key), also) {
            (Some(here), None) => mistake(here),
            (Some(here), Some((other, label))) => match place(&other) {
                Some(there) => mistake(here).also(there, label),
                None => mistake(here).help(default(&other)),
            },
            (None, Some((other, _))) => mistake(place(&other).unwrap_or_default()).help(default(&key)),
            // A default breaks no rule by itself: it is the table that lacks the key.
            (None, None) => {
                let table = key.rsplit_once('.').and_then(|(table, _)| place(table));
                mistake(table.unwrap_or_default())
            }
        })
    }

    fn is_refused(&self, key: &str) -> bool {
        let is_in = |refused: &String| {
            key.strip_prefix(&**refused).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        };
        self.refused.iter().any(is_in)
    }
}

/// The key of the list that an element is in, or the key itself.
fn list_of(key: &str) -> &str {
    match key.rsplit_once('[') {
        Some((list, index)) if index.ends_with(']') => list,
        _ => key,
    }
}
