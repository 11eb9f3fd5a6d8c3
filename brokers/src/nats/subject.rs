//! What may be a subject. A destination made from a topic always is one; one made by a template may not be.

/// Longest subject we send to.
const BYTES: usize = 512;

/// Whether a message may be published to `destination`: tokens joined by dots, none empty, no wildcard, no blank, and
/// nothing that belongs to the server (`$…`).
pub(super) fn is_subject(destination: &str) -> bool {
    let token = |token: &str| {
        !token.is_empty()
            && token
                .chars()
                .all(|char| !char.is_control() && !char.is_whitespace() && !matches!(char, '*' | '>'))
    };
    destination.len() <= BYTES && !destination.starts_with('$') && destination.split('.').all(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_but_plain_tokens_is_a_subject() {
        for subject in ["orders", "orders.placed", "a.b-c_d.é"] {
            assert!(is_subject(subject), "{subject}");
        }
        for subject in
            ["", ".", "a.", ".a", "a..b", "a b", "a\r\nPUB x", "a\t", "*", "a.>", "a*", "$JS.API.X", "a\0"]
        {
            assert!(!is_subject(subject), "{subject:?}");
        }
        assert!(!is_subject(&"a".repeat(513)));
    }
}
