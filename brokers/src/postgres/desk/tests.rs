//! What the desk holds, and how it forgets.

use outbox::log::{LogMessage, Seen, Window};

use super::*;

fn seen(xmax: u64) -> Seen {
    Seen { era: 1, snapshot: format!("{xmax}:{xmax}:").parse().unwrap(), bound: 0 }
}

fn shards(epoch: i64) -> Vec<(i16, i64, Progress)> {
    (0..2).map(|shard| (shard, epoch, Progress::new(shard, seen(10)))).collect()
}

fn desk() -> Desk {
    let mut desk = Desk::default();
    desk.open(shards(1), 2);
    desk
}

/// All of a window. Each message is its position and key; the key's first letter is its shard.
fn page(id: u64, messages: &[(i64, &str)]) -> Page {
    let log = |(position, key): &(i64, &str)| LogMessage {
        position: *position,
        slot: i16::from(key.starts_with('b')),
        enqueued_at: chrono::DateTime::UNIX_EPOCH,
        message: Arc::new(Message::new("t", "k", "").with_key(*key)),
        fault: None,
    };
    Page {
        window: Arc::new(Window { id, seen: seen(id * 10), until: seen(id * 10 + 10) }),
        shards: Arc::new([0, 1]),
        messages: messages.iter().map(log).collect(),
        read_to: 100,
        last: true,
    }
}

fn take(desk: &mut Desk) -> Vec<(i64, u64)> {
    let taken = desk.take(100, Instant::now());
    taken.into_iter().map(|one| (one.position, one.delivery)).collect()
}

fn positions(desk: &mut Desk) -> Vec<i64> {
    take(desk).into_iter().map(|(position, _)| position).collect()
}

#[test]
fn what_is_read_again_is_not_handed_out_again_while_it_is_in_hands_or_acknowledged() {
    let mut desk = desk();
    desk.take_page(page(1, &[(1, "a"), (2, "a"), (3, "a")]));
    let taken = desk.take(2, Instant::now());
    assert!(desk.answer(2, taken[1].delivery, Said::Acknowledged));
    desk.open(shards(2), 2);
    assert!(positions(&mut desk).is_empty());
    desk.take_page(page(1, &[(1, "a"), (2, "a"), (3, "a")]));
    assert_eq!(positions(&mut desk), [3]);
    assert!(desk.answer(1, taken[0].delivery, Said::Acknowledged));
    let after: Vec<i64> = desk.record().iter().map(|record| record.after).collect();
    assert_eq!(after, [2], "the one acknowledged before counts");
}

#[test]
fn what_somebody_else_had_in_between_is_handed_out_again_and_old_answers_mean_nothing() {
    let mut desk = desk();
    desk.take_page(page(1, &[(1, "a")]));
    let old = take(&mut desk)[0].1;
    desk.open(shards(3), 2);
    assert!(!desk.answer(1, old, Said::Acknowledged));
    desk.take_page(page(1, &[(1, "a")]));
    let new = take(&mut desk)[0].1;
    assert!(!desk.answer(1, old, Said::Acknowledged) && desk.answer(1, new, Said::Acknowledged));
}

#[test]
fn what_is_sent_back_comes_again_before_those_behind_it() {
    let mut desk = desk();
    desk.take_page(page(1, &[(1, "a"), (2, "a"), (3, "b")]));
    let first = desk.take(1, Instant::now()).remove(0);
    let from = Instant::now() + std::time::Duration::from_secs(60);
    assert!(desk.answer(1, first.delivery, Said::Again(from)));
    assert_eq!(positions(&mut desk), [3]);
    assert_eq!(desk.wakes_at(), Some(from));
    let again = desk.take(9, from);
    assert_eq!(again.iter().map(|one| one.position).collect::<Vec<_>>(), [1, 2]);
}

#[test]
fn a_shard_that_leaves_waits_for_what_is_in_hands_and_its_cursor_stays_before_the_rest() {
    let mut desk = desk();
    desk.take_page(page(1, &[(1, "a"), (2, "b"), (3, "a"), (4, "b")]));
    let taken = desk.take(2, Instant::now());
    desk.leave(2);
    assert!(!desk.has_left() && positions(&mut desk).is_empty());
    desk.take_page(page(2, &[(5, "a")]));
    assert!(desk.answer(1, taken[0].delivery, Said::Acknowledged));
    assert!(desk.answer(2, taken[1].delivery, Said::Again(Instant::now())));
    assert!(desk.has_left() && positions(&mut desk).is_empty());
    let records = desk.record();
    assert_eq!(records.iter().map(|record| (record.shard, record.after)).collect::<Vec<_>>(), [(0, 2)]);
}

#[test]
fn what_is_recorded_is_forgotten_and_makes_room() {
    let mut desk = desk();
    desk.take_page(page(1, &[(1, "a"), (2, "a")]));
    assert!(!desk.has_room(2));
    let taken = take(&mut desk);
    desk.answer(2, taken[1].1, Said::Acknowledged);
    assert!(desk.has_room(2) && desk.record().is_empty());
    desk.answer(1, taken[0].1, Said::Acknowledged);
    assert_eq!(desk.record().len(), 1);
    desk.recorded(&[]);
    assert!(desk.messages.is_empty());
}

#[test]
fn topics_that_are_not_asked_for_move_the_cursor() {
    let mut desk = Desk::default();
    desk.ask_for(vec!["other".parse().unwrap()]);
    desk.open(shards(1), 2);
    desk.take_page(page(1, &[(1, "a"), (2, "a")]));
    assert!(positions(&mut desk).is_empty());
    assert_eq!(desk.record().iter().map(|record| record.seen.clone()).collect::<Vec<_>>(), [seen(20)]);
}
