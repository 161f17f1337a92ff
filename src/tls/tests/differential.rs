//! rustls's own record layer and ours, given the same bytes: the same plaintext, the same end, the same alert.
//!
//! Ours is stricter in three places, where it does not wait for what cannot become right any more:
//!
//! - a header is refused at its first wrong byte, also for its length; rustls waits for all of it, or for the body;
//! - of a handshake message that is no KeyUpdate the type is enough to refuse it; rustls waits for the whole message;
//! - the header is authenticated as it came; rustls puts the type and version there that should have come. So a record
//!   whose header says version 3.1 is not authentic for us. (No script flips a bit there, and of version 3.1 there is none
//!   that is sealed.)

use std::collections::BTreeMap;
use std::sync::Mutex;

use rustls::{ConnectionTrafficSecrets, KeyLog, ServerConnection};

use super::carried::opened;
use super::*;
use crate::tls::script;
use crate::tls::session::Session;

/// The secrets of a client's and of a server's first keys.
#[derive(Debug, Default)]
struct Secrets(Mutex<[Vec<u8>; 2]>);

impl KeyLog for Secrets {
    fn log(&self, label: &str, _client_random: &[u8], secret: &[u8]) {
        let labels = ["CLIENT_TRAFFIC_SECRET_0", "SERVER_TRAFFIC_SECRET_0"];
        if let Some(index) = labels.iter().position(|known| *known == label) {
            self.0.lock().expect("nobody panics with it")[index] = secret.to_vec();
        }
    }
}

/// A direction of the oracle's: its keying material, and the number of the next record.
type Direction = (Vec<u8>, u64);

/// rustls on both sides. Returns the server, and what its two directions are sealed with.
fn connect(
    id: u16,
    server: &Arc<ServerConfig>,
    client: &ClientConfig,
) -> (ServerConnection, Direction, Direction) {
    let secrets = Arc::new(Secrets::default());
    let mut client = client.clone();
    client.key_log = Arc::clone(&secrets) as _;
    client.enable_secret_extraction = true;
    let mut client = Client::new(client, tokio::io::duplex(1).0);
    let mut server = ServerConnection::new(Arc::clone(server)).expect("a server");
    while client.tls.wants_write() || server.wants_write() {
        give(&mut server, &client.take(), &mut Vec::new()).expect("the server is content");
        client.give(&taken(&mut server), &mut Vec::new()).expect("the client is content");
    }
    let extracted = client.tls.dangerous_extract_secrets().expect("the handshake has ended");
    let [read, write] = &*secrets.0.lock().expect("nobody panics with it");
    let material = |keys: ConnectionTrafficSecrets, secret: &[u8]| match (suite(id).version, keys) {
        (Version::Tls13, _) => secret.to_vec(),
        (
            Version::Tls12,
            ConnectionTrafficSecrets::Aes128Gcm { key, iv }
            | ConnectionTrafficSecrets::Aes256Gcm { key, iv }
            | ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv },
        ) => [key.as_ref(), iv.as_ref()].concat(),
        _ => unreachable!("there is no other"),
    };
    let (tx, rx) = (extracted.tx, extracted.rx);
    (server, (material(tx.1, read), tx.0), (material(rx.1, write), rx.0))
}

/// Gives the oracle bytes, up to its end. `true` if the client has said goodbye.
fn give(server: &mut ServerConnection, mut bytes: &[u8], out: &mut Vec<u8>) -> Result<bool, rustls::Error> {
    while !bytes.is_empty() {
        if server.read_tls(&mut bytes).expect("a slice gives all") == 0 {
            break;
        }
        let result = server.process_new_packets();
        let _ = server.reader().read_to_end(out);
        if result?.peer_has_closed() {
            return Ok(true);
        }
    }
    Ok(false)
}

fn taken(server: &mut ServerConnection) -> Vec<u8> {
    let mut bytes = Vec::new();
    while server.wants_write() {
        server.write_tls(&mut bytes).expect("a Vec takes all");
    }
    bytes
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    Open,
    Closed,
    Refused,
}

/// The first and only error alert among sealed records.
fn alert(suite: &'static Suite, (secret, seq): &Direction, bytes: &mut [u8]) -> Option<u8> {
    let alerts = opened(suite, secret, *seq, bytes).into_iter();
    alerts.filter(|(_, kind, plain)| *kind == 21 && plain[0] == 2).map(|(.., plain)| plain[1]).next()
}

#[tokio::test]
async fn rustls_and_our_records_agree() {
    let rounds = std::env::var("ROUNDS").map_or(3000, |rounds| rounds.parse().expect("a number"));
    let seed =
        std::env::var("SEED").map_or_else(|_| fastrand::u64(..), |seed| seed.parse().expect("a number"));
    println!("SEED={seed} ROUNDS={rounds}");
    let ids = [0x1301, 0xc02b, 0x1302, 0xc02c, 0x1303, 0xcca9];
    let configs =
        ids.map(|id| (id, configs(id))).map(|(id, (server, client))| (id, Arc::new(server), client));
    let mut ends = BTreeMap::<(End, bool), usize>::new();
    for round in 0..rounds {
        let mut random = fastrand::Rng::with_seed(seed.wrapping_add(round));
        let (id, server, client) = &configs[random.usize(..configs.len())];
        let suite = suite(*id);
        let (mut oracle, read, write) = connect(*id, server, client);
        let material =
            |(bytes, seq): &Direction| (Material::new(suite, bytes).expect("its own length"), *seq);
        let mut client = script::Client::new(suite, material(&read).0, read.1);
        client.act(&mut |end| random.usize(..end));

        let mut theirs = Vec::new();
        let (their_end, why) = match give(&mut oracle, &client.bytes, &mut theirs) {
            Ok(false) => (End::Open, String::new()),
            Ok(true) => (End::Closed, String::new()),
            Err(error) => (End::Refused, error.to_string()),
        };
        let their_alert = alert(suite, &write, &mut taken(&mut oracle));

        let (ours_io, mut far) = tokio::io::duplex(1 << 20);
        let session =
            Session { suite: *id, alpn: None, server_name: None, client: None, resumed: false, policy: 0 };
        let records = Records::new(session, suite, material(&read), material(&write), Vec::new());
        let mut ours = TlsStream::new(ours_io, records);
        let (mut got, mut end, mut refusal) = (Vec::new(), End::Open, String::new());
        let mut rest = &client.bytes[..];
        'sent: while !rest.is_empty() {
            let (piece, after) = rest.split_at(random.usize(1..=20000).min(rest.len()));
            far.write_all(piece).await.expect("the pipe takes it");
            rest = after;
            loop {
                match read_now(&mut ours).await {
                    Ok(None) => break,
                    Ok(Some(data)) if data.is_empty() => {
                        end = End::Closed;
                        break 'sent;
                    }
                    Ok(Some(data)) => got.extend(data),
                    Err(error) => {
                        (end, refusal) = (End::Refused, error.to_string());
                        break 'sent;
                    }
                }
            }
            match random.u8(0..4) {
                0 => ours = carry(ours),
                1 => ours.park(),
                _ => {}
            }
        }
        drop(ours);
        let mut sent = Vec::new();
        far.read_to_end(&mut sent).await.expect("the pipe gives it");
        let our_alert = alert(suite, &write, &mut sent);

        let told = format!("{id:x} SEED={} ROUNDS=1: {refusal}; rustls: {why}", seed.wrapping_add(round));
        assert!(got == theirs, "{told}: {} and {} bytes", got.len(), theirs.len());
        assert!(client.data.starts_with(&got), "{told}: what was never sent");
        let sooner = end == End::Refused && their_end == End::Open;
        if sooner {
            assert!(matches!(our_alert, Some(10 | 22 | 50)), "{told}: {our_alert:?}");
        } else {
            let their_alert = match (their_end, their_alert, our_alert) {
                // Of some errors rustls tells a client nothing; or it was still waiting, and what came then was wrong in
                // another way.
                (End::Refused, None, _) | (End::Refused, Some(20 | 22 | 50), Some(10 | 22 | 50)) => our_alert,
                _ => their_alert,
            };
            assert_eq!((end, our_alert), (their_end, their_alert), "{told}");
        }
        *ends.entry((end, sooner)).or_default() += 1;
    }
    println!("{ends:?}");
    assert!(
        rounds < 1000 || [End::Open, End::Closed, End::Refused].iter().all(|end| ends[&(*end, false)] > 10)
    );
}

#[test]
fn no_script_makes_a_difference_by_where_it_is_cut() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    for _ in 0..2000 {
        let script: Vec<u8> = (0..random.usize(..300)).map(|_| random.u8(..)).collect();
        script::fuzz(&script);
    }
}
