//! The kinds of events that operators, and their tools, find by their `MESSAGE_ID`: an interface, which does not change.
//!
//! `docs/journal.md` has them all with their fields, and `packaging/systemd/catalog/steadfast.catalog` a text for each, as
//! `journalctl -x` shows it; `tests/events.rs` holds the three together. A field has one name and one unit in all of them,
//! in lower case here and on stderr, in capitals in the journal.

/// A worker begins, with this config.
pub(crate) const STARTING: &str = "50e0bc717501413ba3c7192dd9d50732";
/// A worker listens on an address.
pub(crate) const LISTENING: &str = "4bce8cdb12374e27b4d1f8b2b0a0b06f";
/// A worker serves.
pub(crate) const READY: &str = "aedd95bf043a402ebb572776bdf89bf5";
/// A signal asks for a stop.
pub(crate) const STOP_ASKED: &str = "6cc5c1aa4dbe43a4ba899fc159b5d88e";
/// Another signal asks to cut what is in flight, or a third one to exit at once.
pub(crate) const CUT_ASKED: &str = "605800ba163242b58f02e076d6d4a608";
/// A worker finishes what it has in flight.
pub(crate) const DRAINING: &str = "e62308d674fb463fa7d25813d17d0ff4";
/// A stop has cut a request.
pub(crate) const REQUEST_CUT: &str = "3b9d1a52c80e4f6d8f0b7c1e9a64d2f3";
/// A stop has cut a child of the caller's own.
pub(crate) const CHILD_CUT: &str = "a3dec29d743b4a898ab2d7f573b6f9b7";
/// A child does not stop, and is ended.
pub(crate) const CHILD_LATE: &str = "250f2f92ba7d4f4e9cf2aab3d1b1569f";
/// A worker has stopped: what became of everything.
pub(crate) const SHUTDOWN_REPORT: &str = "7f1c8a0f1e1f4c6a9b6f6c3f5d2f4a10";
/// A worker has given connections to its successor.
pub(crate) const HANDED_OVER: &str = "d9bfc674ce624d009374a22e728f60e3";
/// A worker has taken connections from its predecessor.
pub(crate) const TOOK_OVER: &str = "a080d80ddca64e44a4bf11a40a8e0f37";
/// Connections could not go from one worker to the next.
pub(crate) const NOT_CARRIED: &str = "54f2a9f197e6474fad98cd696db9a9a6";
/// The clients of connections would be judged by another policy now.
pub(crate) const POLICY_CHANGED: &str = "4f8ddc1f4edb4a348ed85ad2ca61d570";
/// The way of connections from one worker to the next is broken.
pub(crate) const MAILBOX_FAILED: &str = "1e5ee7b315ad4ea28779367db147e3f4";
/// systemd does not keep all that the next process needs.
pub(crate) const STORE_TOO_SMALL: &str = "66d778a0d4604b908096ba9299ddebb5";
/// A worker has taken over from another.
pub(crate) const WORKER_REPLACED: &str = "a1e7a28ab1e94c088c329b1ffaefeffb";
/// A worker that was replaced has finished.
pub(crate) const WORKER_FINISHED: &str = "0b02ad63a4024991a773dd9873cb3c6e";
/// A worker that was replaced is ended, or has ended, before it had finished.
pub(crate) const WORKER_CUT: &str = "f4055ac723684daebfa223886bd449f5";
/// The worker that serves has ended unasked, or is ended because it does not react.
pub(crate) const WORKER_ENDED: &str = "0a9b09e355d54b109a510f872820c2a5";
/// The worker has ended unasked too often: the service ends.
pub(crate) const WORKER_GAVE_UP: &str = "d9c21e2f3d004e39903e37972cb415f1";
/// A reload has begun.
pub(crate) const RELOAD_BEGUN: &str = "e2b485ade381480da62271a3ca48623c";
/// A reload has failed: nothing has changed.
pub(crate) const RELOAD_FAILED: &str = "68a7db1cea564059822189fd252c3208";
/// A reload was asked for when there could be none.
pub(crate) const RELOAD_REFUSED: &str = "84bc5385ccb44c49ad552e7038e9a0b4";
/// The main process goes on as the program that is on disk now.
pub(crate) const UPGRADED: &str = "bdbc2a6a46c34957aff1f1897f29a253";
/// The main process cannot become the program that is on disk now.
pub(crate) const UPGRADE_FAILED: &str = "cfbc83dbc19045879ee1547864d5b293";
/// A child has failed while it was stopping.
pub(crate) const CHILD_FAILED: &str = "688b421c174c47b784f9fb80642bc8e3";
/// A child has failed, and is started again.
pub(crate) const CHILD_RESTARTED: &str = "76bb9848db3d44f88a7d17d70ef875cc";
/// A child has failed too often: the worker stops.
pub(crate) const CHILD_GAVE_UP: &str = "6482bcb0b50c4e1a888ed2f49184f0ee";
/// A child has had no heartbeat for too long.
pub(crate) const CHILD_STUCK: &str = "69749713218240a8815d7f95461fa632";
/// A handler blocks its thread.
pub(crate) const HANDLER_BLOCKED: &str = "b994820b68e34daba1b3db536b008dbd";
/// A handler has given an answer that is none.
pub(crate) const HANDLER_WRONG: &str = "96ed8655d8ea4fa4bcff4c0dd258672d";
/// A handler has panicked.
pub(crate) const HANDLER_PANICKED: &str = "1d3fa7c26e9b4d05b8c4e27f90a6d318";
/// Some code has panicked.
pub(crate) const PANIC: &str = "8efe011a25c6485a879821bc03d9e6fd";
/// The config is wrong.
pub(crate) const CONFIG_REFUSED: &str = "3791f1d058904cd998829d455a0c53ba";
/// What `[https]` names can be served, and is doubtful: a certificate, a CA of clients, a host.
pub(crate) const CERTIFICATE_DOUBTFUL: &str = "5585d4801c4a47dda370e14eed2e826f";
/// The config is wrong, and the last good one is served.
pub(crate) const LAST_GOOD_CONFIG: &str = "b3265a9db842439d8c27d4c9a3170151";
/// The service, or a part of it, cannot start.
pub(crate) const START_FAILED: &str = "71856ae1b0794aa0ac3155227458911c";
/// An address to listen on is not one of this machine.
pub(crate) const ADDRESS_ABSENT: &str = "e525c971d67447898ab2ad6493da9baf";
/// The admin listener can be reached from other machines.
pub(crate) const ADMIN_EXPOSED: &str = "b32fd86e3b9343b5a97bd1765cd3bec2";
/// New connections cannot be accepted.
pub(crate) const CANNOT_ACCEPT: &str = "63e7b92e68c94711809e98eedbbb4865";
/// New connections are accepted again.
pub(crate) const ACCEPTS_AGAIN: &str = "3c542605cc694879a0286b1e19c25f77";
/// A file, or the root of a route's files, cannot be read.
pub(crate) const FILE_UNREADABLE: &str = "3d514af682f74a2588132cf232250adc";
/// A request has had no answer from its upstream.
pub(crate) const UPSTREAM_FAILED: &str = "8bc149d6c3c042139508e0e7200d1e15";
/// A request has ended.
pub(crate) const ACCESS: &str = "f572c0f3258540fb90d22913183e5886";
/// The log cannot be written.
pub(crate) const LOG_FAILED: &str = "c0d5b7f2a94e4e1c8f6a37d12be95084";
/// The log could not keep up.
pub(crate) const LOG_LOST: &str = "e87d5ae24d6048e4a51ec5d4192bd701";
