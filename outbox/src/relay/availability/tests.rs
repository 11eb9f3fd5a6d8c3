//! When a destination is probed, and when its keys are held.

use proptest::prelude::*;

use super::*;

const BACKOFF: Backoff = Backoff { first: Duration::from_millis(100), ceiling: Duration::from_secs(5) };
const PATIENCE: Duration = Duration::from_secs(30);

fn name(destination: &str) -> Arc<str> {
    destination.into()
}

fn is_due(availability: &Availability, destination: &Arc<str>, now: Instant) -> bool {
    !availability.due_probes([destination], now).is_empty()
}

/// The destination `d` is down since a moment.
fn outage() -> (Availability, Arc<str>, Instant) {
    let (mut availability, now) = (Availability::new(BACKOFF), Instant::now());
    let destination = name("d");
    let outage = availability.failed(&destination, 1, "full", now, 0.0);
    assert_eq!(outage, Outage::New(BACKOFF.first));
    (availability, destination, now)
}

#[test]
fn a_destination_that_is_down_pauses_no_other() {
    let (availability, destination, now) = outage();
    assert!(availability.is_down(&destination) && !availability.is_down("e"));
    assert_eq!(availability.paused_until(now), None);
}

#[test]
fn one_message_probes_and_the_pauses_grow() {
    let (mut availability, destination, mut now) = outage();
    for (position, pause) in [(2, 100), (3, 200), (4, 400)] {
        assert!(!is_due(&availability, &destination, now));
        now += Duration::from_millis(pause);
        assert!(is_due(&availability, &destination, now));
        availability.probe(&destination, position, now, PATIENCE);
        assert!(!is_due(&availability, &destination, now), "one at a time");
        assert_eq!(availability.failed(&destination, 99, "full", now, 0.0), Outage::Known);
        assert_eq!(availability.probe_at(&destination, now), None, "what was on the wire is no probe");
        availability.failed(&destination, position, "full", now, 0.0);
    }
    availability.probe(&destination, 5, now, PATIENCE);
    assert!(is_due(&availability, &destination, now + PATIENCE), "an answer is not waited for without end");
}

#[test]
fn only_a_probe_that_is_answered_ends_an_outage() {
    let (mut availability, destination, now) = outage();
    availability.probe(&destination, 2, now, PATIENCE);
    assert!(!availability.answered(&destination, 1, now), "sent before it went down");
    availability.unanswered(&destination, 2, now, 0.0);
    assert!(!availability.answered(&destination, 2, now), "it was not the probe any more");
    availability.probe(&destination, 3, now, PATIENCE);
    assert!(availability.answered(&destination, 3, now));
    assert_eq!(availability.down().count(), 0);
}

#[test]
fn keys_are_held_while_another_destination_confirms_and_not_while_nothing_does() {
    let (mut availability, destination, now) = outage();
    let other = name("e");
    assert!(!availability.is_holding(&destination, true, now), "nothing confirms");
    availability.answered(&other, 2, now);
    assert!(!availability.is_holding(&destination, false, now), "it may be over with the first probe");
    assert!(availability.is_holding(&destination, true, now), "the look-ahead is half full");
    availability.probe(&destination, 3, now, PATIENCE);
    availability.failed(&destination, 3, "full", now, 0.0);
    assert!(availability.is_holding(&destination, false, now));
    assert!(!availability.is_holding(&destination, true, now + PROOF), "that was long ago");
    // The other one fails as well: it is the broker, whatever it says.
    availability.failed(&other, 4, "full", now, 0.0);
    assert!(!availability.is_holding(&destination, true, now));
    assert!(!availability.is_holding(&other, true, now));
}

#[test]
fn a_full_look_ahead_is_held_if_others_wait_beyond() {
    let (mut availability, destination, now) = outage();
    availability.found_beyond("e", false, now);
    assert!(!availability.is_holding(&destination, true, now), "it is tried first, if that can be read");
    assert!(availability.reads_beyond(now));
    availability.found_beyond("e", true, now);
    assert!(
        availability.is_holding(&destination, true, now)
            && !availability.is_holding(&destination, false, now)
    );
    availability.failed(&name("e"), 9, "full", now, 0.0);
    assert!(!availability.is_holding(&destination, true, now), "what waited there fails, too");
    assert!(!availability.reads_beyond(now));
}

/// So many destinations are down, with the shortest pause, at the time answered.
fn many(most: usize) -> (Availability, Vec<Arc<str>>, Instant) {
    let (mut availability, now) = (Availability::new(BACKOFF), Instant::now());
    let names: Vec<_> = (0..most).map(|number| name(&format!("d{number}"))).collect();
    for destination in &names {
        availability.failed(destination, 1, "full", now, 0.0);
    }
    (availability, names, now)
}

#[test]
fn a_destination_never_tried_is_no_proof_where_many_are_down_and_none_confirms() {
    let (mut availability, names, mut now) = many(100);
    for round in 0..3 {
        availability.found_beyond("e", true, now);
        assert!(!availability.is_holding(&names[0], true, now));
        now += PROOF * 2_u32.pow(round);
        availability.found_beyond("e", true, now);
        assert!(availability.is_holding(&names[0], true, now), "nothing is hidden without end");
        availability.failed(&name(&format!("e{round}")), 9, "full", now, 0.0);
    }
    availability.answered(&name("f"), 2, now);
    assert!(availability.is_holding(&names[0], true, now), "one confirms");
}

#[test]
fn many_destinations_are_probed_a_few_at_once_and_seldom_until_one_is_back() {
    let (mut availability, names, start) = many(1000);
    assert_eq!(availability.due_probes(&names, start).len(), 0);
    let (mut now, mut probes, step) = (start, 0, Duration::from_millis(10));
    while now < start + Duration::from_secs(100) {
        now += step;
        for destination in availability.due_probes(&names, now) {
            availability.probe(&destination, 2, now, PATIENCE);
            probes += 1;
            availability.failed(&destination, 2, "full", now, 0.5);
        }
    }
    assert!(probes < 100 * 100, "{probes} probes in 100 s");
    let later = now + Duration::from_secs(60);
    let due = availability.due_probes(&names, later);
    assert_eq!(due.len(), PROBES);
    due.iter().for_each(|destination| availability.probe(destination, 3, later, PATIENCE));
    assert_eq!(availability.due_probes(&names, later).len(), 0, "a few at once");
    // With the first that is back, the others follow without their pauses.
    let (mut waiting, mut rounds) = (due, 0);
    while !waiting.is_empty() {
        for destination in waiting {
            availability.answered(&destination, 3, now);
        }
        waiting = availability.due_probes(&names, now);
        waiting.iter().for_each(|destination| availability.probe(destination, 3, now, PATIENCE));
        rounds += 1;
    }
    assert!(availability.down().next().is_none() && rounds < 200, "{rounds} rounds");
}

#[test]
fn what_is_remembered_of_those_that_confirm_is_bounded() {
    let (mut availability, destination, now) = outage();
    for number in 0..10_000 {
        let at = now + Duration::from_millis(number);
        availability.answered(&name(&format!("e{number}")), 2, at);
    }
    assert_eq!(availability.confirming.len(), CONFIRMING);
    assert!(availability.is_holding(&destination, true, now + Duration::from_secs(10)));
}

#[test]
fn a_destination_that_flaps_is_probed_as_seldom_as_before() {
    let (mut availability, destination, now) = outage();
    for position in 2..6 {
        availability.probe(&destination, position, now, PATIENCE);
        availability.failed(&destination, position, "full", now, 0.0);
    }
    availability.probe(&destination, 6, now, PATIENCE);
    assert!(availability.answered(&destination, 6, now));
    let Outage::New(pause) = availability.failed(&destination, 7, "full", now, 0.0) else { panic!("known") };
    assert_eq!(pause, BACKOFF.after(5, 0.0));
    availability.probe(&destination, 8, now, PATIENCE);
    availability.answered(&destination, 8, now);
    let later = now + BACKOFF.ceiling;
    assert_eq!(availability.failed(&destination, 9, "full", later, 0.0), Outage::New(BACKOFF.first));
}

#[test]
fn a_broker_that_is_unavailable_pauses_everything_with_growing_pauses() {
    let (mut availability, mut now) = (Availability::new(BACKOFF), Instant::now());
    for pause in [100, 200, 400] {
        let pause = Duration::from_millis(pause);
        assert_eq!(availability.pause(now, 0.0), Some(pause));
        assert_eq!((availability.pause(now, 0.0), availability.paused_until(now)), (None, Some(now + pause)));
        now += pause;
        assert_eq!(availability.paused_until(now), None);
    }
    availability.answered(&name("e"), 1, now);
    assert_eq!(availability.pause(now, 0.0), Some(BACKOFF.first));
}

proptest! {
    /// Whatever comes in whichever order: a destination has one probe at a time, none while it works, and its keys are held
    /// only if it is down and another that is not down has confirmed since, or waits beyond.
    #[test]
    fn what_is_held_is_down_and_another_is_not(
        script in proptest::collection::vec((0_usize..3, 0_u8..6, 0_u64..200), 1..200),
    ) {
        let names = ["a", "b", "c"].map(name);
        let mut availability = Availability::new(BACKOFF);
        let mut now = Instant::now();
        let mut probes: [Option<i64>; 3] = [None; 3];
        let mut confirmed: [Option<Instant>; 3] = [None; 3];
        let mut beyond = false;
        for (position, (which, what, wait)) in (1..).zip(script) {
            now += Duration::from_millis(wait);
            let destination = &names[which];
            match what {
                0 => {
                    let probe = probes[which].take().unwrap_or(position);
                    if availability.failed(destination, probe, "no", now, 0.5) != Outage::Known {
                        beyond = false;
                    }
                    confirmed[which] = None;
                }
                1 => {
                    let probe = probes[which].take().unwrap_or(position);
                    availability.answered(destination, probe, now);
                    if !availability.is_down(destination) {
                        confirmed[which] = Some(now);
                    }
                }
                2 if is_due(&availability, destination, now) => {
                    prop_assert!(availability.is_down(destination) && probes[which].is_none());
                    availability.probe(destination, position, now, Duration::from_secs(1 << 20));
                    probes[which] = Some(position);
                }
                3 => {
                    if let Some(probe) = probes[which].take() {
                        availability.unanswered(destination, probe, now, 0.5);
                    }
                }
                4 => {
                    availability.found_beyond("e", true, now);
                    beyond = true;
                }
                _ => {}
            }
            for (one, destination) in names.iter().enumerate() {
                for full in [false, true] {
                    if availability.is_holding(destination, full, now) {
                        prop_assert!(availability.is_down(destination));
                        let works = |other: usize| other != one && !availability.is_down(&names[other]);
                        let confirms = (0..3).any(|other| works(other) && confirmed[other].is_some());
                        prop_assert!(confirms || (beyond && full));
                    }
                }
            }
        }
    }
}
