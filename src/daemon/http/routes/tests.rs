//! Promises of the router, and of the actions that answer by themselves. Those of `files` and `proxy` are with these.

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::Response;
use http_body_util::BodyExt;
use proptest::prelude::*;
use tokio_util::task::TaskTracker;

use super::files::tests::Site;
use super::{Action, Route, Routes, respond};
use crate::server::{Handler, InFlight, Peer};

pub(super) fn route(path: &str, action: Action) -> Route {
    Route::new(path, action)
}

/// A route whose answer is its own path.
pub(super) fn named(path: &str) -> Route {
    let config = respond::Config { status: StatusCode::OK, headers: HeaderMap::new(), body: path.into() };
    route(path, Action::Respond(config))
}

pub(super) fn routed(routes: &[Route]) -> Routes {
    Routes::new(routes, None, None, &TaskTracker::new())
}

pub(super) fn get(path: &str) -> Request {
    Request::get(path).body(Body::empty()).expect("a request")
}

pub(super) async fn ask(routes: &Routes, request: Request) -> Response {
    routes.answer(request, InFlight::of(Peer::Unix)).await
}

pub(super) async fn text(response: Response) -> String {
    let body = response.into_body().collect().await.expect("a whole body");
    String::from_utf8(body.to_bytes().into()).expect("text")
}

pub(super) async fn body_at(router: &Routes, path: &str) -> String {
    text(ask(router, get(path)).await).await
}

// ---------------------------------------------------------------- which route

#[tokio::test]
async fn everything_below_includes_the_folder_itself() {
    let router = routed(&[named("/assets/*")]);
    for path in ["/assets/", "/assets/x", "/assets/x/y", "/assets/x/", "/assets/?q"] {
        assert_eq!(body_at(&router, path).await, "/assets/*", "{path}");
    }
    for path in ["/", "/assets", "/assetsx", "/Assets/x"] {
        assert_eq!(ask(&router, get(path)).await.status(), StatusCode::NOT_FOUND, "{path}");
    }
}

#[tokio::test]
async fn the_root_is_below_everything_unless_it_has_a_route() {
    let router = routed(&[named("/*")]);
    assert_eq!(body_at(&router, "/").await, "/*");
    let router = routed(&[named("/*"), named("/")]);
    assert_eq!(body_at(&router, "/").await, "/");
    assert_eq!(body_at(&router, "/x").await, "/*");
}

#[tokio::test]
async fn braces_colons_and_stars_in_a_path_are_themselves() {
    let router = routed(&[named("/{id}"), named("/:id"), named("/*a"), named("/{*b}/*"), named("/a*b")]);
    // The braces that a URI may hold; hyper reads them as they come.
    for path in ["/{id}", "/:id", "/*a", "/a*b"] {
        assert_eq!(body_at(&router, path).await, path);
    }
    assert_eq!(body_at(&router, "/{*b}/x").await, "/{*b}/*");
    for path in ["/x", "/x/y", "/axb"] {
        assert_eq!(ask(&router, get(path)).await.status(), StatusCode::NOT_FOUND, "{path}");
    }
}

#[tokio::test]
async fn no_route_is_404_with_a_reason() {
    let response = ask(&routed(&[]), get("/")).await;
    assert_eq!(response.status(), StatusCode::NOT_FOUND);
    assert_eq!(text(response).await, "nothing is served at this path\n");
}

#[tokio::test]
async fn the_callers_router_gets_what_no_route_claims() {
    let own = Router::new().route("/own/{id}", axum::routing::get(async || "own"));
    let router = Routes::new(&[named("/a/*")], Some(own), None, &TaskTracker::new());
    assert_eq!(body_at(&router, "/own/1").await, "own");
    assert_eq!(body_at(&router, "/a/1").await, "/a/*");
    assert_eq!(ask(&router, get("/elsewhere")).await.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn the_callers_router_gets_a_uri_as_it_was_sent() {
    let own = Router::new().fallback(async |request: Request| request.uri().to_string());
    let router = Routes::new(&[named("/a/*")], Some(own), None, &TaskTracker::new());
    for sent in ["/%6fwn//./x/../y%2fz?%71", "/a/../own", "http://host/%6fwn", "/own%2f..", "*"] {
        let mut request = get("/");
        *request.uri_mut() = sent.parse().expect("a URI");
        let response = ask(&router, request).await;
        if sent == "/own%2f.." {
            assert_eq!(response.status(), StatusCode::BAD_REQUEST);
        } else {
            assert_eq!(text(response).await, sent);
        }
    }
    // The spelling that a route claims does not get that far.
    assert_eq!(body_at(&router, "/own/../%61/x").await, "/a/*");
}

#[tokio::test]
async fn a_route_may_be_written_in_any_spelling() {
    let site = Site::new();
    let files = route("/./%61ssets//*", Action::Files(site.config()));
    let router = routed(&[named("/%70rivate/*"), named("/x/../%7euser"), files, named("/no/../../thing")]);
    assert_eq!(body_at(&router, "/private/x").await, "/%70rivate/*");
    assert_eq!(body_at(&router, "/%7Euser").await, "/x/../%7euser");
    assert_eq!(body_at(&router, "/assets/sub/").await, "the index below");
    let redirect = ask(&router, get("/assets/sub")).await;
    assert_eq!(redirect.headers()[header::LOCATION], "/assets/sub/");
    // One that nothing can ask for.
    assert_eq!(ask(&router, get("/thing")).await.status(), StatusCode::NOT_FOUND);
}

/// Which of these routes is the most specific for a path: it itself, or the longest folder above it.
fn most_specific<'a>(routes: &'a [String], path: &str) -> Option<&'a str> {
    let exact = routes.iter().find(|route| *route == path);
    let above = |route: &&String| route.strip_suffix('*').is_some_and(|folder| path.starts_with(folder));
    let route = exact.or_else(|| routes.iter().filter(above).max_by_key(|route| route.len()));
    route.map(String::as_str)
}

proptest! {
    #[test]
    fn the_most_specific_route_wins(
        routes in prop::collection::btree_set("(/[ab{:]{1,2}){0,3}(/|/\\*)|(/[ab{:]{1,2}){1,3}", 1..8),
        path in "(/[ab{:]{1,2}){0,4}/?",
    ) {
        let routes: Vec<String> = routes.into_iter().collect();
        let path = if path.is_empty() { "/".to_owned() } else { path };
        let router = routed(&routes.iter().map(|path| named(path)).collect::<Vec<_>>());
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let response = runtime.block_on(ask(&router, get(&path)));
        if let Some(route) = most_specific(&routes, &path) {
            prop_assert_eq!(runtime.block_on(text(response)), route);
        } else {
            prop_assert_eq!(response.status(), StatusCode::NOT_FOUND);
        }
    }
}

// ---------------------------------------------------------------- which host

/// A route of hosts whose answer is its own name.
fn hosted(hosts: &[&str], path: &str) -> Route {
    let mut route = named(path);
    route.hosts = hosts.iter().map(ToString::to_string).collect();
    let body = route.name().into_owned();
    Route { action: Action::Respond(respond::Config { body, ..respond::Config::default() }), ..route }
}

fn get_from(host: &str, path: &str) -> Request {
    let mut request = get(path);
    request.headers_mut().insert(header::HOST, HeaderValue::from_str(host).expect("a host"));
    request
}

async fn body_from(routes: &Routes, host: &str, path: &str) -> String {
    text(ask(routes, get_from(host, path)).await).await
}

#[tokio::test]
async fn the_most_specific_host_wins_before_the_path() {
    let router = routed(&[
        named("/deep/er/*"),
        named("/*"),
        hosted(&["*.example.org"], "/deep/*"),
        hosted(&["*.a.example.org"], "/*"),
        hosted(&["b.a.example.org", "example.org"], "/*"),
    ]);
    for (host, path, route) in [
        ("b.a.example.org", "/deep/er/x", "b.a.example.org/*"),
        ("example.org", "/deep/er/x", "b.a.example.org/*"),
        ("c.b.a.example.org", "/deep/er/x", "*.a.example.org/*"),
        ("c.a.example.org", "/deep/er/x", "*.a.example.org/*"),
        ("a.example.org", "/deep/er/x", "*.example.org/deep/*"),
        ("xexample.org", "/deep/er/x", "/deep/er/*"),
        ("org", "/deep/x", "/*"),
    ] {
        assert_eq!(body_from(&router, host, path).await, route, "{host}");
    }
}

#[tokio::test]
async fn a_path_that_the_host_has_not_is_looked_for_at_less_specific_hosts() {
    let router = routed(&[
        hosted(&["www.example.org"], "/one"),
        hosted(&["*.example.org"], "/two"),
        named("/three"),
        hosted(&["other.org"], "/four"),
    ]);
    for path in ["/one", "/two", "/three"] {
        assert!(body_from(&router, "www.example.org", path).await.ends_with(path));
    }
    assert_eq!(ask(&router, get_from("www.example.org", "/four")).await.status(), StatusCode::NOT_FOUND);
    // A request without a host has the routes of every host.
    assert_eq!(body_at(&router, "/three").await, "/three");
    assert_eq!(ask(&router, get("/one")).await.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn no_spelling_of_a_host_gets_past_its_route() {
    let router = routed(&[
        hosted(&["Example.ORG"], "/*"),
        hosted(&["192.0.2.1"], "/*"),
        hosted(&["2001:db8::1"], "/*"),
        named("/*"),
    ]);
    for host in ["example.org", "EXAMPLE.org", "example.org.", "example.org:8443", "%65xample.org."] {
        assert_eq!(body_from(&router, host, "/").await, "Example.ORG/*", "{host}");
    }
    assert_eq!(body_from(&router, "192.0.2.1:80", "/").await, "192.0.2.1/*");
    assert_eq!(body_from(&router, "[2001:DB8:0::1]:80", "/").await, "2001:db8::1/*");
    // RFC 9112, section 3.2.2: the host of the target takes the place of the field.
    let mut request = get_from("example.org", "/");
    *request.uri_mut() = "http://192.0.2.1/".parse().expect("a URI");
    assert_eq!(text(ask(&router, request).await).await, "192.0.2.1/*");
}

#[tokio::test]
async fn a_folder_of_files_redirects_at_its_own_host_alone() {
    let site = Site::new();
    let mut files = route("/assets/*", Action::Files(site.config()));
    files.hosts = vec!["example.org".into(), "example.com".into()];
    let router = routed(&[files, named("/*")]);
    for host in ["example.org", "example.com"] {
        let redirect = ask(&router, get_from(host, "/assets")).await;
        assert_eq!(redirect.headers()[header::LOCATION], "/assets/");
    }
    assert_eq!(body_from(&router, "example.net", "/assets").await, "/*");
}

/// How specific a route's host is for a host; `None` if it is not for it.
fn specific(claim: &str, host: &str) -> Option<usize> {
    match claim.strip_prefix('*') {
        _ if claim.is_empty() => Some(0),
        Some(below) => (host.len() > below.len() && host.ends_with(below)).then_some(claim.len()),
        None => (claim == host).then_some(usize::MAX),
    }
}

proptest! {
    #[test]
    fn the_most_specific_host_wins_and_then_the_most_specific_path(
        routes in prop::collection::btree_set(("|(\\*\\.)?([ab]\\.){0,2}[ab]", "(/[ab]){0,2}/\\*|(/[ab]){1,2}"), 1..10),
        host in "([ab]\\.){0,3}[ab]",
        path in "(/[ab]){1,3}",
    ) {
        let hosted: Vec<_> = routes
            .iter()
            .map(|(host, path)| if host.is_empty() { named(path) } else { hosted(&[host.as_str()], path) })
            .collect();
        let mut hosts: Vec<_> = routes.iter().map(|(host, _)| host).filter(|h| specific(h, &host).is_some()).collect();
        hosts.sort_by_key(|claim| std::cmp::Reverse(specific(claim, &host)));
        let expected = hosts.iter().find_map(|claim| {
            let paths: Vec<_> = routes.iter().filter(|(host, _)| host == *claim).map(|(_, path)| path.clone()).collect();
            most_specific(&paths, &path).map(|path| format!("{claim}{path}"))
        });
        let router = routed(&hosted);
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let response = runtime.block_on(ask(&router, get_from(&host, &path)));
        if let Some(route) = expected {
            prop_assert_eq!(runtime.block_on(text(response)), route);
        } else {
            prop_assert_eq!(response.status(), StatusCode::NOT_FOUND);
        }
    }
}

/// Another spelling of a path, made by so many changes.
fn respelled(path: &str, changes: &[(usize, usize)]) -> String {
    let mut path = path.to_owned();
    for &(at, change) in changes {
        let slashes: Vec<_> = path.match_indices('/').map(|(at, _)| at).collect();
        let slash = slashes[at % slashes.len()];
        let letters: Vec<_> = path.match_indices(|char: char| char.is_ascii_lowercase()).collect();
        match change {
            0 => path.insert(slash, '/'),
            1 => path.insert_str(slash, "/."),
            2 => path.insert_str(slash, "/x/.."),
            3 => path.insert_str(slash, "/%2e/z/./%2E%2e"),
            4 => path.insert_str(slash, "/y/z/.%2e/%2e."),
            // Nothing is encoded twice.
            _ if path.contains('%') => {}
            _ => {
                let (at, letter) = letters[at % letters.len()];
                let byte = letter.as_bytes()[0];
                path.replace_range(at..=at, &format!("%{byte:02x}"));
            }
        }
    }
    path
}

proptest! {
    #[test]
    fn no_spelling_of_a_path_gets_past_its_route(
        path in "/up/private(/[a-c]{1,3}){0,3}",
        changes in prop::collection::vec((any::<usize>(), 0_usize..8), 1..6),
    ) {
        let spelling = respelled(&path, &changes);
        let router = routed(&[named("/up/private"), named("/up/private/*"), named("/*")]);
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let response = runtime.block_on(ask(&router, get(&spelling)));
        prop_assert!(runtime.block_on(text(response)).starts_with("/up/private"), "{spelling}");
    }
}

// ---------------------------------------------------------------- respond

#[tokio::test]
async fn a_fixed_answer_is_given_to_any_method() {
    let config = respond::Config {
        status: StatusCode::IM_A_TEAPOT,
        headers: HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static("text/short"))]),
        body: "stout".into(),
    };
    let router = routed(&[route("/", Action::Respond(config))]);
    for method in ["GET", "POST", "DELETE", "OPTIONS", "BREW"] {
        let mut request = get("/");
        *request.method_mut() = method.parse().expect("a method");
        let response = ask(&router, request).await;
        assert_eq!(response.status(), StatusCode::IM_A_TEAPOT);
        assert_eq!(response.headers()[header::CONTENT_TYPE], "text/short");
        assert_eq!(text(response).await, "stout");
    }
}

#[tokio::test]
async fn head_has_the_length_of_get_and_no_body() {
    let router = routed(&[named("/five")]);
    let mut request = get("/five");
    *request.method_mut() = Method::HEAD;
    let response = ask(&router, request).await;
    assert_eq!(response.headers()[header::CONTENT_LENGTH], "5");
    assert_eq!(text(response).await, "");
}

// ---------------------------------------------------------------- status

#[tokio::test]
async fn the_status_tells_path_and_query_as_json() {
    let router = routed(&[route("/*", Action::Status)]);
    let response = ask(&router, get("/the/\"path\"?and=%22query%22")).await;
    assert_eq!(response.headers()[header::CONTENT_TYPE], "application/json");
    let expected = r#"{"status":"ok","uri":"/the/\"path\"?and=%22query%22"}"#;
    assert_eq!(text(response).await, expected);
    assert_eq!(body_at(&router, "http://host/absolute").await, r#"{"status":"ok","uri":"/absolute"}"#);
    assert_eq!(body_at(&router, "/%61//./b/").await, r#"{"status":"ok","uri":"/%61//./b/"}"#);
}
