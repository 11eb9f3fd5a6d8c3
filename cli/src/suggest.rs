//! "Did you mean …?": the name that a misspelt one is nearest to.

/// The nearest of `names`, if a slip of the finger explains the difference.
pub(crate) fn nearest<'a>(name: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let near = |candidate: &'a str| (strsim::damerau_levenshtein(name, candidate), candidate);
    names
        .into_iter()
        .map(near)
        .min()
        .filter(|(distance, _)| *distance <= name.len().div_ceil(3).min(3))
        .map(|(_, name)| name)
}

/// The same as the end of a message; empty if there is none.
pub(crate) fn hint<'a>(name: &str, names: impl IntoIterator<Item = &'a str>) -> String {
    nearest(name, names).map_or_else(String::new, |name| format!("; did you mean {name}?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_recognised_and_another_word_is_not() {
        let names = ["batch", "lease", "drain", "max_in_flight"];
        assert_eq!(nearest("bacth", names), Some("batch"));
        assert_eq!(nearest("max_inflight", names), Some("max_in_flight"));
        assert_eq!(nearest("leese", names), Some("lease"));
        assert_eq!(nearest("kafka", names), None);
        assert_eq!(hint("x", names), "");
    }
}
