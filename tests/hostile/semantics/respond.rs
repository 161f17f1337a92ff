//! Fixed answers.

use super::try_all;
use crate::site::{IMPATIENT, Site};

#[test]
fn a_fixed_answer_has_a_length_where_one_may_be() {
    let tables: String = [200, 204, 205, 304, 404]
        .map(|status| format!("[[route]]\npath = \"/{status}\"\nrespond = {{ status = {status} }}\n"))
        .concat();
    let site = Site::start(IMPATIENT, &tables);
    // RFC 9110, section 8.6: 204 has none, and that of 304 would be the length of what is not sent.
    try_all(
        &site,
        &[],
        r"
        9110, 8.6 | GET /200 | 200 | content-length: 0 & date: |
        9110, 8.6 | GET /204 | 204 | !content-length & date: |
        9110, 15.3.6 | GET /205 | 205 | content-length: 0 |
        9110, 8.6 | GET /304 | 304 | !content-length |
        9110, 8.6 | HEAD /304 | 304 | !content-length |
        9110, 8.6 | HEAD /204 | 204 | !content-length |
        9110, 8.6 | HEAD /404 | 404 | content-length: 0 |
    ",
    );
}
