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
    Route { path: path.into(), action }
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
