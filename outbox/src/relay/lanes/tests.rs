//! What may be sent of each key, and in which order.

use chrono::Utc;
use message::Message;
use proptest::prelude::*;

use super::*;

fn item(position: i64, key: Option<&str>) -> Item {
    let mut message = Message::new("t", "k", "four");
    message.key = key.map(Into::into);
    let message = Arc::new(message);
    let outgoing = Outgoing { destination: "t".into(), message: Arc::clone(&message) };
    Item {
        log: LogMessage { position, slot: 0, enqueued_at: Utc::now(), message, fault: None },
        window: 1,
        outgoing,
        unanswered: 0,
    }
}

fn positions(batch: &[Item]) -> Vec<i64> {
    batch.iter().map(|item| item.log.position).collect()
}

fn lanes(pipelining: Pipelining, keys: &[(i64, Option<&str>)]) -> Lanes {
    let mut lanes = Lanes::new(pipelining);
    keys.iter().for_each(|(position, key)| lanes.push(item(*position, *key)));
    lanes
}

#[test]
fn one_per_key_sends_the_next_of_a_key_only_when_the_last_is_confirmed() {
    let mut lanes =
        lanes(Pipelining::OnePerKey, &[(1, Some("a")), (2, Some("a")), (3, Some("b")), (4, None)]);
    let batch = lanes.batch(10);
    assert_eq!(positions(&batch), [1, 3, 4]);
    assert!(lanes.batch(10).is_empty());
    lanes.confirm(&batch[0]);
    assert_eq!(positions(&lanes.batch(10)), [2]);
}

#[test]
fn a_key_shares_a_batch_but_not_the_wire_with_another_batch() {
    let mut lanes =
        lanes(Pipelining::PerBatch, &[(1, Some("a")), (2, Some("a")), (3, Some("a")), (4, Some("b"))]);
    let first = lanes.batch(2);
    assert_eq!(positions(&first), [1, 2]);
    assert_eq!(positions(&lanes.batch(10)), [4]);
    lanes.confirm(&first[0]);
    assert!(lanes.batch(10).is_empty());
    lanes.confirm(&first[1]);
    assert_eq!(positions(&lanes.batch(10)), [3]);
}

#[test]
fn what_failed_goes_first_and_the_rest_of_the_key_waits() {
    let mut lanes = lanes(Pipelining::PerBatch, &[(1, Some("a")), (2, Some("a")), (3, Some("a"))]);
    let mut batch = lanes.batch(2).into_iter();
    let (one, two) = (batch.next().unwrap(), batch.next().unwrap());
    assert!(matches!(lanes.fail(two), After::Nothing));
    let After::Rest(resting) = lanes.fail(one) else { panic!("the lane must rest") };
    assert!(lanes.batch(10).is_empty());
    lanes.wake(resting);
    assert_eq!(positions(&lanes.batch(10)), [1, 2, 3]);
}

#[test]
fn a_rejected_message_takes_its_whole_key_along_in_order_and_nothing_else() {
    let mut lanes =
        lanes(Pipelining::OnePerKey, &[(1, Some("a")), (2, Some("a")), (3, Some("b")), (4, Some("b"))]);
    let mut batch = lanes.batch(10).into_iter();
    let After::Held { items, cause } = lanes.reject(batch.next().unwrap(), "no".into()) else {
        panic!("held")
    };
    assert_eq!((positions(&items), cause), (vec![1, 2], Cause::Rejected("no".into())));
    lanes.confirm(&batch.next().unwrap());
    lanes.push(item(5, Some("a")));
    assert_eq!(positions(&lanes.batch(10)), [4]);
    let copies = lanes.take_copies(|_| true);
    assert_eq!((copies[0].0, copies[0].1.log.position), (1, 5));
    assert_eq!(lanes.len(), 1);
}

#[test]
fn a_released_key_takes_up_what_was_not_copied_yet() {
    let mut lanes = Lanes::new(Pipelining::OnePerKey);
    lanes.hold("a".into(), 1);
    lanes.push(item(5, Some("a")));
    lanes.push(item(6, Some("a")));
    assert!(lanes.batch(10).is_empty() && lanes.copied_to().eq([1, 1]));
    lanes.release(&"a".into());
    let batch = lanes.batch(10);
    assert_eq!(positions(&batch), [5]);
    assert_eq!(lanes.copied_to().count(), 0);
}

#[test]
fn what_goes_to_a_closed_destination_waits_there_and_everything_else_goes() {
    let elsewhere: Arc<str> = "elsewhere".into();
    let mut lanes = Lanes::new(Pipelining::OnePerKey);
    for (position, key, away) in [
        (1, Some("a"), true),
        (2, Some("a"), false),
        (3, Some("b"), false),
        (4, None, true),
        (5, None, false),
    ] {
        let mut item = item(position, key);
        if away {
            item.outgoing.destination = Arc::clone(&elsewhere);
        }
        lanes.push(item);
    }
    lanes.close(&elsewhere);
    let sent = lanes.batch(10);
    assert_eq!(positions(&sent), [3, 5]);
    sent.iter().for_each(|item| drop(lanes.confirm(item)));
    assert!(lanes.batch(10).is_empty() && lanes.len() == 3);
    let probe = lanes.probe(&elsewhere).unwrap();
    assert_eq!(probe.log.position, 1);
    let After::Rest(resting) = lanes.fail(probe) else { panic!("the lane must rest") };
    assert!(lanes.file(resting).is_none(), "it waits there again");
    assert_eq!(lanes.probe(&elsewhere).unwrap().log.position, 4);
    lanes.open(&elsewhere);
    let sent = lanes.batch(10);
    assert_eq!(positions(&sent), [1]);
    lanes.confirm(&sent[0]);
    assert_eq!(positions(&lanes.batch(10)), [2]);
}

#[test]
fn what_waits_at_a_closed_destination_is_held_by_key_and_in_order() {
    let mut lanes =
        lanes(Pipelining::OnePerKey, &[(1, Some("a")), (2, Some("b")), (3, Some("a")), (4, None)]);
    let destination: Arc<str> = "t".into();
    lanes.close(&destination);
    assert!(lanes.batch(10).is_empty());
    let held: Vec<Vec<i64>> = lanes.hold_closed(&destination).iter().map(|items| positions(items)).collect();
    assert_eq!(held, [vec![1, 3], vec![2], vec![4]]);
    assert_eq!((lanes.len(), lanes.bytes()), (0, 0));
    lanes.open(&destination);
    lanes.push(item(5, Some("a")));
    assert!(lanes.batch(10).is_empty(), "it is copied behind what is held");
    assert!(lanes.copied_to().eq([1]));
}

#[test]
fn a_key_that_takes_too_much_is_set_aside_when_nothing_of_it_is_on_the_wire() {
    let keys: Vec<_> = (1..=6).map(|position| (position, Some("a"))).collect();
    let mut lanes = lanes(Pipelining::OnePerKey, &keys);
    lanes.push(item(7, Some("b")));
    let sent = lanes.batch(10);
    assert_eq!(positions(&sent), [1, 7]);
    assert!(lanes.set_aside(5, usize::MAX).is_empty() && lanes.set_aside(usize::MAX, 20).is_empty());
    assert!(matches!(lanes.confirm(&sent[1]), After::Nothing));
    assert!(lanes.set_aside(4, usize::MAX).is_empty(), "one is on the wire");
    let After::Held { items, cause } = lanes.confirm(&sent[0]) else { panic!("held") };
    assert_eq!((positions(&items), cause), (vec![2, 3, 4, 5, 6], Cause::Backlog));
    assert_eq!((lanes.len(), lanes.bytes()), (0, 0));
}

proptest! {
    /// Whatever fails and however answers arrive: per key, a message is confirmed only after all before it, no more
    /// is on the wire than the publisher allows, and in the end everything was confirmed once.
    #[test]
    fn every_key_is_confirmed_in_order(
        keys in proptest::collection::vec(proptest::option::of(0_u8..4), 1..60),
        script in proptest::collection::vec((0_u8..4, 0_usize..8, 1_usize..6), 0..400),
        one_per_key in any::<bool>(),
    ) {
        let mode = if one_per_key { Pipelining::OnePerKey } else { Pipelining::PerBatch };
        let mut lanes = Lanes::new(mode);
        let names = ["a", "b", "c", "d"];
        for (position, key) in (1..).zip(&keys) {
            lanes.push(item(position, key.map(|key| names[usize::from(key)])));
        }
        let mut wire: Vec<(usize, Vec<Item>)> = Vec::new();
        let mut resting = Vec::new();
        let mut confirmed: HashMap<Option<Arc<str>>, Vec<i64>> = HashMap::new();
        // After the script, everything succeeds.
        let script = script.into_iter().chain(std::iter::repeat((0, 0, 8)));
        for (step, (action, which, max)) in script.enumerate() {
            let batch = lanes.batch(max);
            if !batch.is_empty() {
                wire.push((step, batch));
            }
            for (index, (_, batch)) in wire.iter().enumerate() {
                for (other, (_, later)) in wire.iter().enumerate() {
                    for item in batch.iter().filter(|item| item.log.message.key.is_some()) {
                        let key = &item.log.message.key;
                        let twice = later.iter().filter(|other| &other.log.message.key == key).count();
                        prop_assert!(twice == 0 || (index == other && (!one_per_key || twice == 1)));
                    }
                }
            }
            if wire.is_empty() {
                match resting.pop() {
                    Some(rest) => { lanes.wake(rest); continue }
                    None => break,
                }
            }
            // Within a batch of several of a key, what succeeds comes before what fails, as PerBatch promises.
            let index = which % wire.len();
            let (_, batch) = wire.remove(index);
            let fails = if action == 0 { batch.len() } else { which % (batch.len() + 1) };
            for (place, item) in batch.into_iter().enumerate() {
                let after = if place < fails {
                    confirmed.entry(item.log.message.key.clone()).or_default().push(item.log.position);
                    lanes.confirm(&item)
                } else {
                    lanes.fail(item)
                };
                if let After::Rest(rest) = after {
                    resting.push(rest);
                }
            }
        }
        prop_assert_eq!((lanes.len(), lanes.bytes()), (0, 0));
        for (key, positions) in &confirmed {
            let mut sorted = positions.clone();
            sorted.sort_unstable();
            if key.is_some() {
                prop_assert_eq!(positions, &sorted);
            }
        }
        prop_assert_eq!(confirmed.values().map(Vec::len).sum::<usize>(), keys.len());
    }
}
