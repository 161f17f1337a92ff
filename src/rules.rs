//! The rules that a config's values keep, and the violations of those that do not.
//!
//! The owner of a section checks its values, each by the key that it has in the file. So each rule stands once, for
//! a config that was made in code and for one that was read from a file, where [`crate::config`] finds each key's
//! place.

use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

/// The longest duration that a config may have: the clock can always be added to it.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// The text of a mistake that says what is expected of a duration that may be zero.
pub(crate) const DELAY: &str = "a duration, such as \"10s\" or \"250ms\"";
/// The same of a duration in which something must happen.
pub(crate) const TIMEOUT: &str = "a duration of more than zero, such as \"10s\" or \"1m 30s\"";
/// The same of a duration in which something must happen, if ever.
pub(crate) const TIMEOUT_OR_NEVER: &str = "a duration of more than zero, such as \"1h\", or \"never\"";

/// A value that breaks a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The value, by its keys in the file: `http.listen[0]`.
    pub(crate) key: String,
    pub(crate) what: String,
    pub(crate) expected: String,
    pub(crate) help: Option<String>,
    /// Another value that has to do with it, and the label for that.
    pub(crate) also: Option<(String, &'static str)>,
}

impl Violation {
    /// Adds advice on how to mend it.
    pub(crate) fn help(&mut self, help: impl Into<String>) -> &mut Self {
        self.help = Some(help.into());
        self
    }

    /// Names another value that has to do with it.
    pub(crate) fn also(&mut self, key: impl Into<String>, label: &'static str) -> &mut Self {
        self.also = Some((key.into(), label));
        self
    }
}

/// On one line: `http.max_connections: ...`.
impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}, expected {}", self.key, self.what, self.expected)?;
        if let Some((key, label)) = &self.also {
            write!(f, "; {key}: {label}")?;
        }
        match &self.help {
            Some(help) => write!(f, "; {help}"),
            None => Ok(()),
        }
    }
}

/// Every value of a config that breaks a rule: those of the sections, then those of the routes, then what is wrong
/// between them. [`Display`](fmt::Display) has a line for each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violations(pub(crate) Vec<Violation>);

impl Violations {
    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &Violation> {
        self.0.iter()
    }
}

impl std::error::Error for Violations {}

impl fmt::Display for Violations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<_> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&lines.join("\n"))
    }
}

/// Collects the violations of one config.
#[derive(Debug, Default)]
pub(crate) struct Check {
    /// The table that the keys are below: `http`, `route[0].files`.
    below: String,
    found: Vec<Violation>,
    warnings: Vec<Violation>,
}

impl Check {
    /// Checks the keys of a table.
    pub(crate) fn table(&mut self, key: &str, check: impl FnOnce(&mut Self)) {
        let below = self.path(key);
        let above = std::mem::replace(&mut self.below, below);
        check(self);
        self.below = above;
    }

    /// Notes what is wrong at a key.
    pub(crate) fn note(
        &mut self,
        key: &str,
        what: impl Into<String>,
        expected: impl Into<String>,
    ) -> &mut Violation {
        let violation = self.violation(key, what, expected);
        added(&mut self.found, violation)
    }

    /// Notes what is doubtful at a key, although it can be served.
    pub(crate) fn warn(
        &mut self,
        key: &str,
        what: impl Into<String>,
        expected: impl Into<String>,
    ) -> &mut Violation {
        let violation = self.violation(key, what, expected);
        added(&mut self.warnings, violation)
    }

    fn violation(&self, key: &str, what: impl Into<String>, expected: impl Into<String>) -> Violation {
        Violation {
            key: self.path(key),
            what: what.into(),
            expected: expected.into(),
            help: None,
            also: None,
        }
    }

    /// A duration that may be nothing.
    pub(crate) fn delay(&mut self, key: &str, value: Duration) {
        if value > LONGEST {
            self.note(key, format!("`{key}` is longer than a year"), DELAY);
        }
    }

    /// A duration in which something must happen.
    pub(crate) fn timeout(&mut self, key: &str, value: Duration) {
        self.timeout_as(key, value, TIMEOUT);
    }

    /// A duration in which something must happen, or `None` for "never".
    pub(crate) fn timeout_or_never(&mut self, key: &str, value: Option<Duration>) {
        if let Some(value) = value {
            self.timeout_as(key, value, TIMEOUT_OR_NEVER);
        }
    }

    fn timeout_as(&mut self, key: &str, value: Duration, expected: &str) {
        if value.is_zero() {
            self.note(key, format!("`{key}` is zero"), expected);
        } else if value > LONGEST {
            self.note(key, format!("`{key}` is longer than a year"), expected);
        }
    }

    /// A number within a range.
    pub(crate) fn number(&mut self, key: &str, value: u64, range: RangeInclusive<u64>) {
        if !range.contains(&value) {
            self.note(key, format!("`{key}` is {value}"), whole_number(&range));
        }
    }

    /// Ends the check, with what is doubtful if nothing is wrong.
    pub(crate) fn finish(self) -> Result<Vec<Violation>, Violations> {
        if self.found.is_empty() { Ok(self.warnings) } else { Err(Violations(self.found)) }
    }

    /// Ends the check, with what is doubtful whatever is wrong.
    pub(crate) fn warnings(self) -> Vec<Violation> {
        self.warnings
    }

    /// The whole path of a key.
    pub(crate) fn path(&self, key: &str) -> String {
        if self.below.is_empty() { key.to_owned() } else { format!("{}.{key}", self.below) }
    }
}

/// Adds it to a list, where something may still be said of it.
fn added(list: &mut Vec<Violation>, violation: Violation) -> &mut Violation {
    let index = list.len();
    list.push(violation);
    &mut list[index]
}

/// The text of a mistake that says what is expected of a number.
pub(crate) fn whole_number(range: &RangeInclusive<u64>) -> String {
    format!("a whole number from {} to {}", range.start(), range.end())
}
