//! The promises of a fleet: three machines with steadfast, each with a systemd of its own, behind a real HAProxy.
//!
//! All of it is as `docs/fleet.md` says: the shipped `haproxy.cfg` under Debian's unit, and the shipped unit of
//! steadfast with the config of that page. Clients ask the balancer and never retry. Needs root, systemd and Debian's
//! haproxy; without them the tests say so and pass, unless `STEADFAST_REQUIRE_SYSTEMD=1`.

mod balancer;
mod crash;
mod fleet;
mod maintenance;
mod restart;
