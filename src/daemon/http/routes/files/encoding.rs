//! Precompressed files, and who accepts which (RFC 9110, section 12.5.3).

use axum::http::{HeaderMap, HeaderValue, header};

/// An encoding in which a file may lie beside itself.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Encoding {
    pub(super) name: &'static str,
    /// The end of such a file's name.
    pub(super) suffix: &'static str,
}

/// The preferred one of two that a client accepts alike comes first. The file as it is comes after them all.
static ENCODINGS: [Encoding; 4] = [
    Encoding { name: "zstd", suffix: ".zst" },
    Encoding { name: "br", suffix: ".br" },
    Encoding { name: "gzip", suffix: ".gz" },
    Encoding { name: "identity", suffix: "" },
];

/// The encodings that a client likes better than the file as it is, the best first. `*` stands for none of them: what a
/// client does not name, it may not know.
pub(super) fn accepted(asked: &HeaderMap) -> Vec<&'static Encoding> {
    let mut weights = [0; ENCODINGS.len()];
    let lines = asked.get_all(header::ACCEPT_ENCODING).iter().map(HeaderValue::to_str);
    for accepted in lines.flatten().flat_map(|line| line.split(',')) {
        let (name, weight) = accepted.split_once(';').unwrap_or((accepted, "q=1"));
        let name = name.trim();
        // Its older name (RFC 9110, section 8.4.1.3).
        let name = if name.eq_ignore_ascii_case("x-gzip") { "gzip" } else { name };
        if let Some(at) = ENCODINGS.iter().position(|encoding| name.eq_ignore_ascii_case(encoding.name))
            && let Some(weight) = thousandths(weight.trim())
        {
            weights[at] = weight.max(weights[at]);
        }
    }
    let [.., identity] = weights;
    let mut accepted: Vec<_> =
        ENCODINGS.iter().zip(weights).filter(|(e, weight)| !e.suffix.is_empty() && *weight > 0).collect();
    accepted.retain(|(_, weight)| *weight >= identity);
    // Stable, so that those with one weight stay as they are preferred.
    accepted.sort_by_key(|(_, weight)| std::cmp::Reverse(*weight));
    accepted.into_iter().map(|(encoding, _)| encoding).collect()
}

/// A weight (RFC 9110, section 12.4.2), from 0 to 1000.
fn thousandths(weight: &str) -> Option<u16> {
    let value = weight.strip_prefix(['q', 'Q'])?.strip_prefix('=')?;
    let (whole, fraction) = value.split_once('.').unwrap_or((value, ""));
    if !matches!(whole, "0" | "1") || fraction.len() > 3 || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    format!("{whole}{fraction:0<3}").parse().ok().filter(|weight| *weight <= 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(lines: &[&'static str]) -> Vec<&'static str> {
        let field = |line: &&'static str| (header::ACCEPT_ENCODING, HeaderValue::from_static(line));
        let mut asked = HeaderMap::new();
        for (name, value) in lines.iter().map(field) {
            asked.append(name, value);
        }
        accepted(&asked).into_iter().map(|encoding| encoding.name).collect()
    }

    #[test]
    fn the_encoding_that_a_client_likes_best_comes_first() {
        for (lines, expected) in [
            (&[][..], &[][..]),
            (&["gzip"], &["gzip"]),
            (&["gzip, deflate, br, zstd"], &["zstd", "br", "gzip"]),
            (&["gzip;q=1, br;q=0.9", "zstd;q=0.95"], &["gzip", "zstd", "br"]),
            (&["br;q=0.001, GZIP ; Q=0.01"], &["gzip", "br"]),
            (&["x-gzip"], &["gzip"]),
            (&["br;q=0, gzip;q=0.000"], &[]),
            (&["br;q=0.1, br;q=0.7, gzip;q=0.5"], &["br", "gzip"]),
            (&["identity;q=0.5, br;q=0.4, gzip;q=0.5, zstd;q=0.6"], &["zstd", "gzip"]),
            (&["*"], &[]),
            // What is no weight is no wish.
            (&["br;q=2, br;q=0.1234, br;q=, br;q=.5, br;w=1, br; q = 1, br;q=1.001, gzip;q=1."], &["gzip"]),
        ] {
            assert_eq!(names(lines), expected, "{lines:?}");
        }
    }
}
