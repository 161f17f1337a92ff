//! A connection on its way from one process to the next: what it leaves with, and what it arrives as.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use axum::http::StatusCode;
use bytes::Bytes;

use super::{Connection, Exchange, Machine, Slot, State};
use crate::handover::NotCarried;
use crate::handover::parcel::{ConnectionNote, Flow, Parcel, TunnelNote};
use crate::server::departures::Departures;
use crate::server::registry::Registry;
use crate::server::request_id::RequestId;
use crate::server::totals::Outcome;
use crate::tls::TlsNote;

impl Connection {
    /// A connection that a predecessor has left between two requests.
    pub(in crate::server) fn taken_over(
        slot: Slot,
        trusted: bool,
        registry: Arc<Registry>,
        departures: Option<Arc<Departures>>,
        note: &ConnectionNote,
    ) -> Self {
        let idle = Duration::from_millis(note.idle_ms);
        let machine = Machine::Parked { since: registry.clock().now().before(idle) };
        Self::new(slot, note.peer.into(), trusted, registry, departures, machine, note.answered)
    }

    /// A tunnel that a predecessor has left: a request that goes on.
    pub(in crate::server) fn tunnel(
        slot: Slot,
        registry: Arc<Registry>,
        departures: Option<Arc<Departures>>,
        note: &TunnelNote,
    ) -> io::Result<Self> {
        let method = note.method.parse().map_err(io::Error::other)?;
        let uri = note.uri.parse().map_err(io::Error::other)?;
        let mut exchange = Exchange::new(method, uri, false);
        exchange.id = RequestId::parse(&note.id).unwrap_or(exchange.id);
        let age = Duration::from_millis(note.age_ms);
        exchange.started = exchange.started.checked_sub(age).unwrap_or(exchange.started);
        exchange.status = Some(StatusCode::SWITCHING_PROTOCOLS);
        registry.totals().begun(slot.thread);
        let route = registry.totals().routes().find(&note.route);
        let machine = Machine::Tunnel { exchange: Box::new(exchange) };
        let tunnel = Self::new(slot, note.peer.into(), false, registry, departures, machine, 0);
        tunnel.set_route(route);
        Ok(tunnel)
    }

    /// True if it may leave for the successor, as what it is now. If it may not, that is counted once.
    pub(in crate::server) fn may_leave(&self) -> bool {
        let Some(departures) = &self.departures else { return false };
        let Some(reason) = departures.refuses(self.state() == State::Tunnel) else { return true };
        self.stays(reason);
        false
    }

    /// It is not carried to the successor, which is counted once.
    pub(in crate::server) fn stays(&self, reason: NotCarried) {
        if !self.refused.swap(true, Relaxed) {
            self.registry.totals().not_carried.add(reason, 1);
        }
    }

    /// Leaves for the successor, in which a tunnel's request goes on.
    pub(in crate::server) fn leave(&self, parcel: Parcel) {
        if let Some(departures) = &self.departures {
            self.end(Outcome::Carried);
            departures.send(parcel);
        }
    }

    /// All that the successor must know of it between two requests.
    pub(in crate::server) fn note(&self, read_ahead: Bytes, tls: Option<TlsNote>) -> ConnectionNote {
        let idle = match *self.machine() {
            Machine::Parked { since } | Machine::Reading { idle: since, .. } => {
                self.registry.clock().now().since(since)
            }
            _ => Duration::ZERO,
        };
        let idle_ms = u64::try_from(idle.as_millis()).unwrap_or(u64::MAX);
        ConnectionNote { peer: self.peer.address(), answered: self.answered(), idle_ms, read_ahead, tls }
    }

    /// All that the successor must know of it as a tunnel. None if it has no request.
    pub(in crate::server) fn tunnel_note(
        &self,
        up: Flow,
        down: Flow,
        tls: Option<TlsNote>,
    ) -> Option<TunnelNote> {
        let machine = self.machine();
        let exchange = machine.exchange()?;
        Some(TunnelNote {
            peer: self.peer.address(),
            method: exchange.method.to_string(),
            uri: exchange.uri.to_string(),
            age_ms: u64::try_from(exchange.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            up,
            down,
            id: exchange.id.to_string(),
            route: self.registry.totals().routes().name(self.route()).to_owned(),
            tls,
        })
    }
}
