//! The mistakes in a config file, shown in the file itself.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::fmt;
use std::io::{self, IsTerminal};
use std::ops::Range;
use std::path::Path;

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};

/// The position of something in the file, in bytes.
pub(super) type Span = Range<usize>;

/// The most mistakes that are shown; more are only counted: the file is probably the wrong one.
const SHOWN: usize = 20;

/// One mistake.
#[derive(Debug)]
pub(super) struct Mistake {
    span: Span,
    what: String,
    expected: String,
    also: Option<(Span, String)>,
    help: Option<String>,
    in_short: Option<String>,
    may_pass: bool,
}

impl Mistake {
    /// A mistake: `what` is wrong at `span`, where `expected` should be.
    pub(super) fn new(span: Span, what: impl Into<String>, expected: impl Into<String>) -> Self {
        let (what, expected) = (what.into(), expected.into());
        Self { span, what, expected, also: None, help: None, in_short: None, may_pass: false }
    }

    /// Points at another place that has to do with it.
    pub(super) fn also(mut self, span: Span, label: impl Into<String>) -> Self {
        self.also = Some((span, label.into()));
        self
    }

    /// Adds advice on how to mend it.
    pub(super) fn help(mut self, help: impl Into<Option<String>>) -> Self {
        self.help = help.into();
        self
    }

    /// Gives it a shorter text, for a summary of one line.
    pub(super) fn in_short(self, text: String) -> Self {
        Self { in_short: Some(text), ..self }
    }

    /// Makes it one that may pass, such as a directory that is not there yet: a start goes on all the same.
    pub(super) fn of_the_moment(self) -> Self {
        Self { may_pass: true, ..self }
    }

    /// True if it may pass without a change of the file.
    pub(super) fn may_pass(&self) -> bool {
        self.may_pass
    }
}

/// All mistakes in one file, in the file's order; or all that is doubtful in one that is right
/// ([`Config::warnings`](crate::Config::warnings)).
///
/// [`Display`](fmt::Display) shows each as `origin:line:column`, the line with the place marked, what was expected,
/// and what to do; without colour, with it as `{:#}`.
#[derive(Debug)]
pub struct Mistakes {
    origin: String,
    text: String,
    all: Vec<Mistake>,
    level: Level<'static>,
}

impl Mistakes {
    pub(super) fn new(origin: &str, text: &str, mut all: Vec<Mistake>) -> Self {
        all.sort_by_key(|mistake| (mistake.span.start, mistake.span.end));
        Self { origin: origin.to_owned(), text: text.to_owned(), all, level: Level::ERROR }
    }

    /// What is doubtful in a file that is right; `None` if nothing is.
    pub(super) fn warnings(origin: &str, text: &str, all: Vec<Mistake>) -> Option<Self> {
        let warnings = Self { level: Level::WARNING, ..Self::new(origin, text, all) };
        (!warnings.all.is_empty()).then_some(warnings)
    }

    /// All of it for stderr: in colour where that is a terminal and `NO_COLOR` is not set.
    #[must_use]
    pub fn for_stderr(&self) -> String {
        if stderr_has_colour() { format!("{self:#}") } else { self.to_string() }
    }

    /// The first on one short line, and how many more there are: `config.toml:12:1: unknown key "lisen", nearest
    /// "listen"; 1 more`.
    pub(super) fn summary(&self) -> String {
        let [first, more @ ..] = &self.all[..] else { return String::new() };
        let file = Path::new(&self.origin).file_name().map_or(Cow::default(), OsStr::to_string_lossy);
        let before = self.text.get(..first.span.start).unwrap_or(&self.text);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        let what = first.in_short.clone().unwrap_or_else(|| first.what.replace('`', "\""));
        let more = if more.is_empty() { String::new() } else { format!("; {} more", more.len()) };
        format!("{file}:{line}:{column}: {what}{more}")
    }

    fn render(&self, mistake: &Mistake, renderer: &Renderer) -> String {
        let mut snippet = Snippet::source(&self.text)
            .path(&self.origin)
            .annotation(AnnotationKind::Primary.span(mistake.span.clone()).label(&mistake.expected));
        if let Some((span, label)) = &mistake.also {
            snippet = snippet.annotation(AnnotationKind::Context.span(span.clone()).label(label));
        }
        let mut report = self.level.clone().primary_title(&mistake.what).element(snippet);
        if let Some(help) = &mistake.help {
            report = report.element(Level::HELP.message(help));
        }
        renderer.render(&[report])
    }
}

impl std::error::Error for Mistakes {}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let renderer = if f.alternate() { Renderer::styled() } else { Renderer::plain() };
        for (index, mistake) in self.all.iter().take(SHOWN).enumerate() {
            if index > 0 {
                f.write_str("\n\n")?;
            }
            f.write_str(&self.render(mistake, &renderer))?;
        }
        match self.all.len().saturating_sub(SHOWN) {
            0 => Ok(()),
            1 => f.write_str("\n\nand 1 more mistake"),
            more => write!(f, "\n\nand {more} more mistakes"),
        }
    }
}

/// True if stderr takes colours.
pub(super) fn stderr_has_colour() -> bool {
    io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Of the words that are known, the one that was probably meant.
pub(super) fn nearest<'k>(written: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    let written = written.to_lowercase();
    known
        .into_iter()
        .map(|word| (strsim::jaro_winkler(&written, word), word))
        .filter(|(likeness, _)| *likeness >= 0.8)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, word)| word)
}

/// `a`, `b`, `c`.
pub(super) fn list<'w>(words: impl IntoIterator<Item = &'w str>) -> String {
    words.into_iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ")
}
