//! The trace that a request is part of (W3C Trace Context): it is passed on, or begun.

use axum::http::{HeaderMap, HeaderName};

use super::request_id::{RequestId, field, hex, is_hex_id, random};

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// The length of a `traceparent` of version 00, and the least of any other (section 3.2.2).
const LENGTH: usize = 55;

/// Leaves the trace of a request as it came; where there is none, or none that can be read, one is begun with the
/// request's id.
pub(crate) fn pass_on(headers: &mut HeaderMap, id: &RequestId) {
    if is_traced(headers) {
        return;
    }
    // Nobody can tell whose it is (section 3.3.1.1).
    headers.remove(TRACESTATE);
    let trace = id.trace().unwrap_or_else(|| hex::<16, 32>(&random(|random| random.u128(..)).to_ne_bytes()));
    let parent = hex::<8, 16>(&random(|random| random.u64(1..)).to_ne_bytes());
    let mut begun = [b'-'; LENGTH];
    begun[..2].copy_from_slice(b"00");
    begun[3..35].copy_from_slice(&trace);
    begun[36..52].copy_from_slice(&parent);
    // Not sampled: that is for whoever records traces to decide.
    begun[53..].copy_from_slice(b"00");
    headers.insert(TRACEPARENT, field(&begun));
}

fn is_traced(headers: &HeaderMap) -> bool {
    let mut parents = headers.get_all(TRACEPARENT).iter();
    match (parents.next(), parents.next()) {
        (Some(parent), None) => is_valid(parent.as_bytes()),
        _ => false,
    }
}

/// True of a `traceparent` that whoever knows its version, or only 00, can read (sections 3.2.2 and 3.2.4).
fn is_valid(parent: &[u8]) -> bool {
    let is_hex = |text: &[u8]| text.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let Some((known, more)) = parent.split_first_chunk::<LENGTH>() else { return false };
    let (version, flags) = (&known[..2], &known[53..]);
    let has_dashes = [2, 35, 52].iter().all(|&at| known[at] == b'-');
    let may_end_so = more.is_empty() || (version != b"00" && more.starts_with(b"-"));
    has_dashes
        && is_hex(version)
        && version != b"ff"
        && is_hex_id(&known[3..35])
        && is_hex_id(&known[36..52])
        && is_hex(flags)
        && may_end_so
}

#[cfg(test)]
mod tests {
    //! A trace is passed on untouched, or begun whole.

    use axum::http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    const VALID: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    /// The fields `traceparent` and `tracestate` as they are passed on.
    fn passed(parents: &[&str], states: &[&str], id: &RequestId) -> (Vec<String>, Vec<String>) {
        let mut headers = HeaderMap::new();
        for (name, values) in [(TRACEPARENT, parents), (TRACESTATE, states)] {
            for value in values {
                headers.append(&name, HeaderValue::from_str(value).expect("a value"));
            }
        }
        pass_on(&mut headers, id);
        let all = |name| {
            headers.get_all(name).iter().map(|value| value.to_str().expect("text").to_owned()).collect()
        };
        (all(TRACEPARENT), all(TRACESTATE))
    }

    #[test]
    fn a_valid_trace_is_passed_on_with_its_state() {
        let later = format!("01{}-what-is-to-come", &VALID[2..]);
        for parent in [VALID, &later, &format!("cc{}", &VALID[2..])] {
            let (parents, states) = passed(&[parent], &["a=1", "b=2"], &RequestId::fresh());
            assert_eq!(
                (parents, states),
                (vec![parent.to_owned()], vec!["a=1".to_owned(), "b=2".to_owned()])
            );
        }
    }

    #[test]
    fn where_there_is_none_or_an_invalid_one_a_trace_is_begun_without_the_state() {
        let id = RequestId::fresh();
        let of_another_length = [format!("{VALID}-"), VALID[..54].to_owned(), String::new()];
        let mut invalid: Vec<String> = of_another_length.into();
        invalid.push(format!("ff{}", &VALID[2..]));
        invalid.push(VALID.to_uppercase());
        invalid.push(VALID.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)));
        invalid.push(VALID.replace("00f067aa0ba902b7", &"0".repeat(16)));
        invalid.push(VALID.replace('-', "_"));
        invalid.push(format!("01{}x", &VALID[2..]));
        let mut cases: Vec<Vec<&str>> = invalid.iter().map(|parent| vec![&**parent]).collect();
        cases.extend([vec![], vec![VALID, VALID]]);
        for parents in cases {
            let (begun, states) = passed(&parents, &["a=1"], &id);
            let [begun] = &begun[..] else { panic!("{begun:?} of {parents:?}") };
            assert!(
                begun.starts_with(&format!("00-{id}-")) && begun.ends_with("-00"),
                "{begun} of {parents:?}"
            );
            assert!(is_valid(begun.as_bytes()), "{begun}");
            assert_eq!(states, [""; 0], "of {parents:?}");
        }
    }

    #[test]
    fn a_trace_is_begun_also_for_an_id_that_cannot_be_a_traces() {
        let id = RequestId::parse("not-hex").expect("an id");
        let (begun, _) = passed(&[], &[], &id);
        assert!(is_valid(begun[0].as_bytes()), "{begun:?}");
    }

    proptest! {
        #[test]
        fn whatever_comes_one_valid_trace_goes_on(parent in "[ -~]{0,60}", id in "[!-~]{1,40}") {
            let id = RequestId::parse(&id).expect("an id");
            let (parents, _) = passed(&[&parent], &[], &id);
            prop_assert_eq!(parents.len(), 1);
            prop_assert!(is_valid(parents[0].as_bytes()));
        }
    }
}
