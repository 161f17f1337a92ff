//! The entry points of the fuzz targets in `fuzz/`; not built otherwise.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::routing::{any, get};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::handover::parcel::{self, Content, Parcel};
use crate::server::Server;
use crate::server::limits::Limits;
use crate::server::{Registry, Totals};
use crate::tls::Records;

/// Reads a message of the mailbox.
pub fn parcels(message: &[u8]) {
    for record in parcel::records(message) {
        if let Ok((_, Ok(content))) = record {
            let note = format!("{content:?}");
            assert!(!note.is_empty());
            let tls = match content {
                Content::Connection(note) => note.tls,
                Content::Tunnel(note) => note.tls,
                Content::Counts(_) | Content::Tickets(_) => None,
            };
            // Refused, or gone on from.
            let _ = tls.map(Records::from_note);
        }
    }
    // With no descriptors at all no connection can be carried.
    let parcels = parcel::read(message, Vec::new());
    assert!(
        parcels.iter().all(|parcel| matches!(parcel, Err(_) | Ok(Parcel::Counts(_) | Parcel::Tickets(_))))
    );
}

/// Feeds a record layer what a client with the right keys, or none, may send.
pub fn records(script: &[u8]) {
    crate::tls::fuzz(script);
}

/// Feeds a connection, and returns all that it answers until it is closed.
pub async fn connection(bytes: &[u8]) -> Vec<u8> {
    let router =
        Router::new().route("/echo", any(async |body: Bytes| body)).route("/{*path}", get(async || "hello"));
    let limits = Limits { body_limit: 64 << 10, ..Limits::default() };
    let registry = Registry::new(Totals::unobserved());
    let server = Server::new(Vec::new(), router, Arc::clone(&registry), limits);
    let (mut client, theirs) = UnixStream::pair().expect("a pair of sockets");
    server.serve_one(theirs);
    let mut answer = Vec::new();
    let exchange = async {
        // The server may close before it has read all, or answered anything.
        let _ = client.write_all(bytes).await;
        let _ = client.shutdown().await;
        let _ = client.read_to_end(&mut answer).await;
        registry.emptied().await;
    };
    tokio::time::timeout(Duration::from_secs(10), exchange)
        .await
        .expect("the connection ends with its client");
    answer
}
