//! The file as it is written: its tables, their keys, and how each key's value is written.
//!
//! A table that is declared below reads itself from TOML: it notes every key it does not know and every value that
//! is not of its key's kind, and goes on, so that one look at the file finds all of them.

use std::borrow::Cow;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::diagnostic::{Mistake, Span, list, nearest};
use super::places::Places;
use super::value::{
    Access, AccessFile, AccessFormat, AuthoritiesFile, BodyLimit, ChainFile, ClientAuth, Connections,
    ContentType, Deadline, Delay, Directory, FieldName, FieldValue, Flag, Format, HeaderLimit, Headers, Host,
    Hosts, IdleTimeout, Index, KeyFile, Level, Listen, Proxies, Restarts, RevocationsFile, RoutePath, Status,
    Target, Threads, Timeout, TlsVersion, True, Upstream, Words,
};

/// A way in which a value is written in the file.
pub(super) trait Kind {
    /// The value, once read.
    type Value;

    /// True of a table, which may have a header of its own.
    const IS_TABLE: bool = false;

    /// The text that completes "expected ..." in a mistake.
    fn expected() -> String;

    /// Reads the value of the key `name`, or notes what is wrong with it.
    fn read(value: Spanned<DeValue<'_>>, name: &str, mistakes: &mut Vec<Mistake>) -> Option<Self::Value>;
}

/// A key of a table.
#[derive(Default)]
pub(super) enum Key<T> {
    /// It is not in the file.
    #[default]
    Absent,
    /// Its value is wrong, which has been noted.
    Refused(Span),
    /// It stands at `at`, its value at the value's own span.
    Given { at: Span, value: Spanned<T> },
}

impl<T> Key<T> {
    fn read<K: Kind<Value = T>>(
        at: Span,
        value: Spanned<DeValue<'_>>,
        name: &str,
        mistakes: &mut Vec<Mistake>,
    ) -> Self {
        let span = value.span();
        match K::read(value, name, mistakes) {
            Some(value) => Self::Given { at, value: Spanned::new(span, value) },
            None => Self::Refused(at),
        }
    }

    /// The place of the key, also of one whose value is wrong.
    pub(super) fn at(&self) -> Option<&Span> {
        match self {
            Self::Absent => None,
            Self::Refused(at) | Self::Given { at, .. } => Some(at),
        }
    }

    /// Notes where the value stands, by its whole path.
    fn note(&self, path: String, places: &mut Places) {
        match self {
            Self::Absent => {}
            Self::Refused(_) => places.refuse(path),
            Self::Given { value, .. } => places.give(path, value.span()),
        }
    }

    /// The value and where it stands.
    pub(super) fn given(self) -> Option<Spanned<T>> {
        match self {
            Self::Given { value, .. } => Some(value),
            Self::Absent | Self::Refused(_) => None,
        }
    }

    /// The value, or `default`.
    pub(super) fn or(self, default: T) -> T {
        self.given().map_or(default, Spanned::into_inner)
    }
}

/// Declares tables: what is expected where one stands, and its keys. With `short`, a lone string is the value of
/// that one key.
macro_rules! tables {
    ($(
        $(#[$doc:meta])*
        $name:ident $expected:literal $(short $short:ident)? { $($key:ident: $kind:ty,)* }
    )*) => {$(
        $(#[$doc])*
        #[derive(Default)]
        pub(super) struct $name {
            $(pub(super) $key: Key<<$kind as Kind>::Value>,)*
        }

        impl $name {
            const KEYS: &[&str] = &[$(stringify!($key)),*];

            /// Notes where its values stand, each by its key below `table`: `"http."`.
            pub(super) fn note(&self, table: &str, places: &mut Places) {
                $(self.$key.note(format!("{table}{}", stringify!($key)), places);)*
            }

            fn set(&mut self, key: &str, at: Span, value: Spanned<DeValue<'_>>, name: &str, mistakes: &mut Vec<Mistake>) {
                match key {
                    $(stringify!($key) => self.$key = Key::read::<$kind>(at, value, name, mistakes),)*
                    unknown => mistakes.push(unknown_key(unknown, at, Self::KEYS)),
                }
            }
        }

        impl Kind for $name {
            type Value = Self;

            const IS_TABLE: bool = true;

            fn expected() -> String {
                $expected.to_owned()
            }

            fn read(value: Spanned<DeValue<'_>>, name: &str, mistakes: &mut Vec<Mistake>) -> Option<Self> {
                let span = value.span();
                match value.into_inner() {
                    DeValue::Table(table) => {
                        let mut read = Self::default();
                        for (key, value) in table {
                            read.set(key.get_ref(), key.span(), value, key.get_ref(), mistakes);
                        }
                        Some(read)
                    }
                    $(text @ DeValue::String(_) => {
                        let mut read = Self::default();
                        read.set(stringify!($short), span.clone(), Spanned::new(span, text), name, mistakes);
                        Some(read)
                    })?
                    other => {
                        mistakes.push(wrong_type::<Self>(name, span, &other));
                        None
                    }
                }
            }
        }
    )*};
}

tables! {
    /// The whole file.
    File "a table" {
        http: Http,
        https: Https,
        route: List<Route>,
        admin: Admin,
        shutdown: Shutdown,
        handover: Handover,
        supervision: Supervision,
        log: Log,
    }

    Http "the section `[http]`" {
        listen: List<Listen>,
        threads: Threads,
        max_connections: Connections,
        connections_per_client: Connections,
        requests_per_connection: Connections,
        header_timeout: Timeout,
        header_limit: HeaderLimit,
        keepalive_timeout: Timeout,
        read_timeout: Timeout,
        write_timeout: Timeout,
        min_rate: BodyLimit,
        min_rate_grace: Timeout,
        tunnel_idle_timeout: IdleTimeout,
        body_limit: BodyLimit,
        h2c: Flag,
        trusted_proxies: List<Proxies>,
        redirect_to_https: Flag,
    }

    Https "the section `[https]`" {
        listen: List<Listen>,
        certificates: List<Certificate>,
        min_version: TlsVersion,
        http2: Flag,
        client_ca: AuthoritiesFile,
        client_auth: ClientAuth,
        client_crl: RevocationsFile,
        client_hosts: List<Host>,
        client_subject_header: FieldName,
        hsts: FieldValue,
    }

    Certificate "a table of `chain` and `key`, both files" {
        chain: ChainFile,
        key: KeyFile,
    }

    /// Of the last four, exactly one is given.
    Route "a route" {
        host: Hosts,
        path: RoutePath,
        respond: Respond,
        status: True,
        files: Files,
        proxy: Proxy,
    }

    Respond "the body, or a table of `status`, `content_type`, `body`, `headers`" short body {
        status: Status,
        content_type: ContentType,
        body: Words,
        headers: Headers,
    }

    Files "a directory, or a table of `root`, `index`, `precompressed`, `cache_control`" short root {
        root: Directory,
        index: Index,
        precompressed: Flag,
        cache_control: FieldValue,
    }

    Proxy "an upstream, or a table of `to`, `retry_for`, `connect_timeout`, `timeout`" short to {
        to: Upstream,
        retry_for: Delay,
        connect_timeout: Timeout,
        timeout: Timeout,
    }

    Admin "the section `[admin]`" {
        listen: List<Listen>,
    }

    Shutdown "the section `[shutdown]`" {
        delay: Delay,
        linger: Delay,
        deadline: Deadline,
    }

    Handover "the section `[handover]`" {
        connections: Flag,
        tunnels: Flag,
        ready_timeout: Timeout,
        deadline: Deadline,
        predecessors: Restarts,
        last_good: Flag,
    }

    Supervision "the section `[supervision]`" {
        max_restarts: Restarts,
        window: Timeout,
        backoff: Delay,
        backoff_max: Delay,
    }

    Log "the section `[log]`" {
        level: Level,
        target: Target,
        format: Format,
        access: Access,
        slow: Delay,
        access_format: AccessFormat,
        access_file: AccessFile,
    }
}

/// The tables that each key belongs in, for the mistake of one that stands elsewhere.
const HOMES: &[(&str, &[&str])] = &[
    ("[http]", Http::KEYS),
    ("[https]", Https::KEYS),
    ("a certificate of [https]", Certificate::KEYS),
    ("[[route]]", Route::KEYS),
    ("[admin]", Admin::KEYS),
    ("[shutdown]", Shutdown::KEYS),
    ("[handover]", Handover::KEYS),
    ("[supervision]", Supervision::KEYS),
    ("[log]", Log::KEYS),
    ("a route's `respond`", Respond::KEYS),
    ("a route's `files`", Files::KEYS),
    ("a route's `proxy`", Proxy::KEYS),
    ("the whole file, outside all sections", File::KEYS),
];

impl File {
    /// Reads a file. Without its syntax nothing of it can be read.
    pub(super) fn parse(text: &str, mistakes: &mut Vec<Mistake>) -> Option<Self> {
        let (table, errors) = DeTable::parse_recoverable(text);
        // One quote or bracket that is not closed makes all that follows look wrong: only the first error counts.
        if let Some(error) = errors.iter().min_by_key(|error| error.span().map_or(0, |span| span.start)) {
            mistakes.push(syntax(text, error));
            return None;
        }
        Self::read(Spanned::new(table.span(), DeValue::Table(table.into_inner())), "", mistakes)
    }
}

/// The parser's error as a mistake, in plainer words where its own can be misunderstood.
fn syntax(text: &str, error: &toml::de::Error) -> Mistake {
    let span = error.span().unwrap_or_default();
    let (what, expected) = error.message().split_once(", expected ").unwrap_or((error.message(), "TOML"));
    let written = text.get(span.clone()).unwrap_or_default();
    let is_word = !written.is_empty() && written.chars().all(char::is_alphanumeric);
    let (what, expected) = match what {
        "duplicate key" => ("this key is given twice", "each key once".to_owned()),
        "missing comma between array elements" => {
            ("this list goes on without a comma", "`,` or `]`".to_owned())
        }
        "string values must be quoted" if written.is_empty() => ("there is no value", "one".to_owned()),
        "string values must be quoted" | "invalid float" if is_word => {
            ("a string has no quotes", format!("{written:?}"))
        }
        what => (what, expected.to_owned()),
    };
    Mistake::new(span, what, format!("expected {expected}"))
}

/// `[...]` in the file, and each `[[...]]`.
pub(super) struct List<K>(std::marker::PhantomData<K>);

impl<K: Kind> Kind for List<K> {
    /// The elements without those that were refused; if all of them were, the list is refused.
    type Value = Vec<Spanned<K::Value>>;

    fn expected() -> String {
        format!("a list, each {}", K::expected())
    }

    fn read(value: Spanned<DeValue<'_>>, name: &str, mistakes: &mut Vec<Mistake>) -> Option<Self::Value> {
        let span = value.span();
        match value.into_inner() {
            DeValue::Array(elements) => {
                let written = elements.len();
                let read = |element: Spanned<DeValue<'_>>| {
                    let span = element.span();
                    K::read(element, name, mistakes).map(|value| Spanned::new(span, value))
                };
                let list: Vec<_> = elements.into_iter().filter_map(read).collect();
                (written == 0 || !list.is_empty()).then_some(list)
            }
            other => {
                let help = match &other {
                    DeValue::String(text) => Some(format!("write [{text:?}]")),
                    DeValue::Table(_) if K::IS_TABLE => {
                        Some(format!("write {}: there can be several", header(name)))
                    }
                    _ => None,
                };
                mistakes.push(wrong_type::<Self>(name, span, &other).help(help));
                None
            }
        }
    }
}

/// The header of each table of a list, which is below that of the section that the list is in.
fn header(name: &str) -> String {
    let home = HOMES.iter().find(|(_, keys)| keys.contains(&name));
    match home.and_then(|(home, _)| home.strip_prefix('[')?.strip_suffix(']')) {
        Some(section) => format!("[{{ .. }}], or [[{section}.{name}]]"),
        None => format!("[[{name}]]"),
    }
}

/// `value` stands where a `K` should.
pub(super) fn wrong_type<K: Kind>(name: &str, span: Span, value: &DeValue<'_>) -> Mistake {
    let found: Cow<'_, str> = match value {
        DeValue::String(_) => "a string".into(),
        DeValue::Integer(integer) => format!("the integer {integer}").into(),
        DeValue::Float(float) => format!("the float {float}").into(),
        DeValue::Boolean(boolean) => format!("{boolean}").into(),
        DeValue::Datetime(_) => "a date or time".into(),
        DeValue::Array(_) => "a list".into(),
        DeValue::Table(_) => "a table".into(),
    };
    Mistake::new(span, format!("`{name}` is {found}"), format!("expected {}", K::expected()))
}

fn unknown_key(key: &str, at: Span, known: &[&str]) -> Mistake {
    let homes: Vec<_> = HOMES.iter().filter(|(_, keys)| keys.contains(&key)).map(|(home, _)| *home).collect();
    let nearest = nearest(key, known.iter().copied());
    let help = match nearest {
        Some(nearest) => Some(format!("the nearest known key is `{nearest}`")),
        None if homes.is_empty() => None,
        None => Some(format!("`{key}` belongs in {}", homes.join(", or in "))),
    };
    let what = format!("unknown key `{}`", key.escape_debug());
    let mistake =
        Mistake::new(at, what, format!("expected one of {}", list(known.iter().copied()))).help(help);
    match nearest {
        Some(nearest) => mistake.in_short(format!("unknown key {key:?}, nearest {nearest:?}")),
        None => mistake,
    }
}
