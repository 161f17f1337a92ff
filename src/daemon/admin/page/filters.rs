//! The functions of `printable.rs`, as the template calls them.

use askama::{Result, Values, filter_fn};

use crate::printable as shown;

#[filter_fn]
pub(super) fn printable(text: &str, _: &dyn Values) -> Result<String> {
    Ok(shown::printable(text).into_owned())
}

/// The first eight characters, by which people tell one from another.
#[filter_fn]
pub(super) fn beginning(id: &str, _: &dyn Values) -> Result<String> {
    Ok(shown::printable(id).chars().take(8).collect())
}

#[filter_fn]
pub(super) fn lasting(seconds: &f64, _: &dyn Values) -> Result<String> {
    Ok(shown::lasting(*seconds))
}

/// A time that there may not be.
#[filter_fn]
pub(super) fn or_none(seconds: &Option<f64>, _: &dyn Values) -> Result<String> {
    Ok(seconds.map_or("–".to_owned(), shown::lasting))
}

#[filter_fn]
pub(super) fn rate(rate: &f64, _: &dyn Values) -> Result<String> {
    Ok(shown::rate(*rate))
}

#[filter_fn]
pub(super) fn size(bytes: &u64, _: &dyn Values) -> Result<String> {
    Ok(shown::size(*bytes))
}

#[filter_fn]
pub(super) fn grouped(number: &u64, _: &dyn Values) -> Result<String> {
    Ok(shown::grouped(*number))
}

#[filter_fn]
pub(super) fn counted(number: &u64, _: &dyn Values, thing: &str) -> Result<String> {
    Ok(shown::counted(*number, thing))
}
