//! The routes of a server, as its figures and its log name them.

/// A route of a server: an index into its [`RouteNames`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RouteId(u32);

impl RouteId {
    /// The request was answered without a route, or has none yet.
    pub(crate) const NONE: Self = Self(0);
    /// The caller's `Router`, which answers what no route claims.
    pub(crate) const ROUTER: Self = Self(1);

    /// That of the config's route at this index.
    pub(crate) fn of_config(index: usize) -> Self {
        // There is no memory for more routes.
        Self(u32::try_from(index).map_or(0, |index| index.saturating_add(2)))
    }

    pub(super) fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    pub(super) fn bits(self) -> u32 {
        self.0
    }
}

/// The names of a server's routes. There are no others, however many paths clients ask for.
#[derive(Clone, Debug)]
pub(crate) struct RouteNames(Box<[Box<str>]>);

impl RouteNames {
    /// Those of a config's routes, by their patterns, beside the two that are no patterns.
    pub(crate) fn new<'a>(patterns: impl IntoIterator<Item = &'a str>) -> Self {
        Self(["none", "router"].into_iter().chain(patterns).map(Into::into).collect())
    }

    /// The route of a name that another process has given; none if there is no such route any more.
    pub(super) fn find(&self, name: &str) -> RouteId {
        let index = self.0.iter().position(|other| **other == *name);
        index.and_then(|index| u32::try_from(index).ok()).map_or(RouteId::NONE, RouteId)
    }

    /// A route's name.
    pub(crate) fn name(&self, route: RouteId) -> &str {
        self.0.get(route.0 as usize).map_or("none", |name| name)
    }
}
