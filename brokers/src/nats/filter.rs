//! The subjects of a group. What the group's consumer does not ask the stream for is passed for the whole group, so no
//! process takes out what another has put in. No I/O.

/// The fewest subjects that hold both lists, where none are all. No two overlap: the server refuses that.
pub(super) fn union(one: &[String], other: &[String]) -> Vec<String> {
    if one.is_empty() || other.is_empty() {
        return Vec::new();
    }
    let mut subjects: Vec<String> = Vec::new();
    for subject in one.iter().chain(other) {
        let mut subject = subject.clone();
        // What it takes in may make it wide enough to take in more.
        while let Some(place) = subjects.iter().position(|known| overlap(known, &subject)) {
            subject = widen(&subjects.swap_remove(place), &subject);
        }
        subjects.push(subject);
    }
    subjects.sort();
    subjects
}

/// Whether `subjects` take all that `wanted` take.
pub(super) fn hold(subjects: &[String], wanted: &[String]) -> bool {
    let mut sorted = subjects.to_vec();
    sorted.sort();
    union(subjects, wanted) == sorted
}

/// Whether some subject fits both.
fn overlap(one: &str, other: &str) -> bool {
    let (mut one, mut other) = (one.split('.'), other.split('.'));
    loop {
        match (one.next(), other.next()) {
            (None, None) | (Some(">"), Some(_)) | (Some(_), Some(">")) => return true,
            (Some("*"), Some(_)) | (Some(_), Some("*")) => {}
            (Some(a), Some(b)) if a == b => {}
            _ => return false,
        }
    }
}

/// One that fits whatever either of two that overlap fits.
fn widen(one: &str, other: &str) -> String {
    let mut words = Vec::new();
    for (one, other) in one.split('.').zip(other.split('.')) {
        if one == ">" || other == ">" {
            words.push(">");
            break;
        }
        words.push(if one == other { one } else { "*" });
    }
    words.join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(subjects: &[&str]) -> Vec<String> {
        subjects.iter().map(|subject| (*subject).to_owned()).collect()
    }

    #[test]
    fn the_union_holds_both_and_no_two_of_it_overlap() {
        for (one, other, both) in [
            (&["a"][..], &["b"][..], &["a", "b"][..]),
            (&["a"], &["a"], &["a"]),
            (&["orders.>"], &["orders.eu", "stock"], &["orders.>", "stock"]),
            (&["a.*"], &["*.b"], &["*.*"]),
            (&["a.*", "c"], &["a.>"], &["a.>", "c"]),
            (&["a.b", "x.b"], &["*.b"], &["*.b"]),
            (&["a.b.c"], &["a.b"], &["a.b", "a.b.c"]),
            (&[], &["a"], &[]),
        ] {
            assert_eq!(union(&list(one), &list(other)), list(both), "{one:?} {other:?}");
            assert_eq!(union(&list(other), &list(one)), list(both), "{other:?} {one:?}");
            assert!(hold(&list(both), &list(one)) && hold(&list(both), &list(other)));
        }
        assert!(!hold(&list(&["a"]), &list(&["a", "b"])) && !hold(&list(&["a"]), &[]));
        assert!(hold(&[], &list(&["a"])));
    }
}
