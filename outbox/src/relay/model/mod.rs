//! The relay's protocol, model-checked: in every order in which writers, processes, the database and the broker can take
//! their steps, within bounds, no message is lost or made up, a key's first deliveries are in order of position, duplicates
//! are bounded, and nothing recorded is repeated.
//!
//! What decides is the real code: `log::Readings` and its windows, `log::Progress`, `Lanes`, `log::Share`. Modelled are the
//! statements (`database`), the tasks that stand between these (`session`), and the broker, a list of what it has kept. A
//! process may be killed at any step, or lose its lease and not know; what is on the wire may arrive much later.
//!
//! Bugs are planted, and each must be found: a checker that convicts nobody proves nothing. With `OUTBOX_MODEL=large` the
//! worlds are larger; that wants `--release`, some minutes and some gigabytes.

mod actions;
mod database;
mod holds;
mod laws;
mod plant;
mod session;
mod steps;
mod world;

use message::Pipelining;
use stateright::{Checker, HasDiscoveries, Model};

use actions::Bounds;
use laws::Law;
use plant::Plant;

fn large() -> bool {
    std::env::var_os("OUTBOX_MODEL").is_some_and(|size| size == "large")
}

/// A world in which nothing goes wrong: one process, one shard, a broker that takes its time.
fn quiet(scripts: Vec<&'static [i16]>) -> Bounds {
    Bounds {
        scripts,
        committed: 0,
        shards: 1,
        processes: 1,
        pipelining: Pipelining::OnePerKey,
        page: 2,
        prompt: false,
        proofs: 0,
        rollbacks: 0,
        crashes: 0,
        expiries: 0,
        unanswered: 0,
        rejections: 0,
        skips: 0,
        outages: 0,
        set_aside: 0,
        stops: 0,
        late_stops: 0,
        server_crashes: 0,
        base: 0,
        plant: None,
    }
}

/// As [`quiet`], when all transactions have committed.
fn written(scripts: Vec<&'static [i16]>) -> Bounds {
    Bounds { committed: scripts.len(), ..quiet(scripts) }
}

/// Transactions take their ids, draw their positions and end in any order, and a reader looks at any moment.
fn reading() -> Bounds {
    let scripts: Vec<&[i16]> = if large() { vec![&[0], &[0], &[1], &[1]] } else { vec![&[0], &[0], &[1]] };
    Bounds { prompt: true, proofs: 1, ..quiet(scripts) }
}

/// The same, while some roll back.
fn rolling_back() -> Bounds {
    let scripts: Vec<&[i16]> = if large() { vec![&[0, 1], &[0], &[1]] } else { vec![&[0], &[0], &[0]] };
    Bounds { prompt: true, proofs: 1, rollbacks: 1, ..quiet(scripts) }
}

/// A process dies between reading and recording, where leaves of the log end; the next finds its cursor and knows nothing.
fn taking_over() -> Bounds {
    let scripts: Vec<&[i16]> = if large() { vec![&[0, 1], &[0], &[1]] } else { vec![&[0, 1], &[0]] };
    Bounds { prompt: true, crashes: 1, page: 1, base: (2 << 20) - 2, ..quiet(scripts) }
}

/// A process whose two shards stand at different places dies.
fn two_shards() -> Bounds {
    let crashes = if large() { 2 } else { 1 };
    Bounds { shards: 2, crashes, page: 1, ..written(vec![&[0, 0], &[1, 1]]) }
}

/// The server dies, and gives out again the transaction ids that its log did not know.
fn server_crashing() -> Bounds {
    let scripts: Vec<&[i16]> = if large() { vec![&[0], &[0], &[1], &[1]] } else { vec![&[0], &[0], &[0]] };
    Bounds { committed: 1, prompt: true, server_crashes: 1, ..quiet(scripts) }
}

/// Two processes, either of which may be taken for dead while it lives, and may then die.
fn zombies() -> Bounds {
    if large() {
        return Bounds { processes: 2, expiries: 2, crashes: 1, ..written(vec![&[0, 0, 0]]) };
    }
    Bounds { processes: 2, expiries: 1, crashes: 1, ..written(vec![&[0, 0]]) }
}

/// The same, and an answer that does not come: what was sent may still arrive.
fn unanswered() -> Bounds {
    let crashes = if large() { 1 } else { 0 };
    Bounds { processes: 2, expiries: 1, crashes, unanswered: 1, ..written(vec![&[0, 0, 0]]) }
}

/// Several messages of a key in one batch, to a broker that keeps them in order.
fn pipelined() -> Bounds {
    let bounds = Bounds { pipelining: Pipelining::PerBatch, page: 3, ..unanswered() };
    if large() { bounds } else { Bounds { processes: 1, expiries: 0, crashes: 1, ..bounds } }
}

/// The same, and a process that is taken for dead with a batch on the wire.
fn pipelined_by_zombies() -> Bounds {
    Bounds { scripts: vec![&[0, 0]], committed: 1, pipelining: Pipelining::PerBatch, ..unanswered() }
}

/// Processes come, share the shards, stop, and hand over.
fn sharing() -> Bounds {
    let (processes, stops) = if large() { (3, 2) } else { (2, 1) };
    Bounds { processes, stops, shards: 2, ..written(vec![&[0, 0], &[1]]) }
}

/// The same with more processes than shards can go round among.
fn standing_by() -> Bounds {
    Bounds { processes: 3, stops: 1, shards: 2, ..written(vec![&[0], &[1]]) }
}

/// A process is told to stop while a key's second message waits for the first, and another key's is confirmed behind it.
fn stopping() -> Bounds {
    let scripts: Vec<&[i16]> = if large() { vec![&[0, 0, 0, 1, 1]] } else { vec![&[0, 0, 1]] };
    Bounds { processes: 2, stops: 1, page: 5, ..written(scripts) }
}

/// The same with what is confirmed in a later window, at a higher position or a lower one.
fn stopping_in_two_windows() -> Bounds {
    let stops = if large() { 2 } else { 1 };
    Bounds { committed: 1, stops, page: 3, ..quiet(vec![&[0, 0], &[1]]) }
}

/// The same when a message is rejected, or not answered, before or after the stop.
fn stopping_with_trouble() -> Bounds {
    Bounds { stops: 1, page: 3, rejections: 1, unanswered: 1, ..written(vec![&[0, 0, 1]]) }
}

/// The broker will not take a message, and its key is held while more of it is written; the process dies.
fn held() -> Bounds {
    let scripts: Vec<&[i16]> = if large() { vec![&[0], &[0], &[0]] } else { vec![&[0, 0], &[0]] };
    Bounds { committed: 1, rejections: 1, crashes: 1, ..quiet(scripts) }
}

/// A key is held, and messages of it are written while it is let go.
fn held_while_written() -> Bounds {
    Bounds { committed: 1, rejections: 1, ..quiet(vec![&[0], &[0], &[0]]) }
}

/// A key is held by a process that is taken for dead.
fn held_by_zombies() -> Bounds {
    let rejections = if large() { 2 } else { 1 };
    Bounds { processes: 2, expiries: 1, rejections, ..written(vec![&[0, 0, 0]]) }
}

/// A key is held behind a message that the cursor waits for, and drained; the process dies, and the next reads it again.
fn settled() -> Bounds {
    let scripts: Vec<&[i16]> = if large() { vec![&[1, 0, 0], &[0]] } else { vec![&[1, 0, 0]] };
    Bounds { rejections: 1, crashes: 1, page: 2, ..written(scripts) }
}

/// The same, and what is rejected is parked until a person skips it.
fn skipped() -> Bounds {
    let scripts: Vec<&[i16]> = if large() { vec![&[1, 0, 0]] } else { vec![&[1, 0]] };
    Bounds { rejections: 1, skips: 1, crashes: 1, page: 1, ..written(scripts) }
}

/// The same by a process that is taken for dead.
fn skipped_by_zombies() -> Bounds {
    Bounds { processes: 2, expiries: 1, crashes: 0, ..skipped() }
}

/// A destination takes nothing for a while: what goes there waits, is held, or probes it; the process dies.
fn unavailable() -> Bounds {
    let (scripts, outages): (Vec<&[i16]>, u8) =
        if large() { (vec![&[0, 0], &[0]], 2) } else { (vec![&[0, 0]], 1) };
    Bounds { outages, crashes: 1, ..written(scripts) }
}

/// The same, when more of the key is written meanwhile.
fn unavailable_while_written() -> Bounds {
    Bounds { committed: 1, outages: 2, ..quiet(vec![&[0], &[0]]) }
}

/// The same, to a broker that keeps a batch in order; a process is told to stop.
fn unavailable_and_pipelined() -> Bounds {
    Bounds { pipelining: Pipelining::PerBatch, page: 3, outages: 1, stops: 1, ..written(vec![&[0, 0, 1]]) }
}

/// The same for a process that is taken for dead.
fn unavailable_to_zombies() -> Bounds {
    Bounds { processes: 2, expiries: 1, outages: 1, ..written(vec![&[0, 0]]) }
}

/// A destination is down, and its key is held behind a message that the cursor waits for: drained as it probes, or skipped by a
/// person meanwhile. The process dies, and the next reads it again.
fn unavailable_and_settled() -> Bounds {
    Bounds { outages: 1, rejections: 0, ..settled() }
}

/// The same, when what is held is parked until a person skips it.
fn unavailable_and_skipped() -> Bounds {
    Bounds { outages: 1, ..skipped() }
}

/// A process is told to stop, and leaves before an earlier message is answered: what was confirmed behind it is settled.
fn stopping_too_late() -> Bounds {
    let scripts: Vec<&[i16]> = if large() { vec![&[0, 1, 1], &[1]] } else { vec![&[0, 1, 1]] };
    Bounds { processes: 2, stops: 1, late_stops: 1, page: 2, ..written(scripts) }
}

/// A key whose messages wait is set aside, while one of them is on the wire or not; the process dies.
fn set_aside() -> Bounds {
    Bounds { set_aside: 1, crashes: 1, page: 3, ..written(vec![&[0, 0, 0]]) }
}

/// Looks at every state of a world.
fn hold(bounds: Bounds) {
    let begun = std::time::Instant::now();
    let checker = bounds.checker().threads(2).spawn_bfs().join();
    let (states, steps, depth) = (checker.unique_state_count(), checker.state_count(), checker.max_depth());
    println!("{states} states, {steps} steps, {depth} deep, {:?}", begun.elapsed());
    for law in Law::ALL {
        if let Some(path) = checker.discovery(law.name()) {
            panic!("{law:?} is broken by {:?}", path.into_actions());
        }
    }
    checker.assert_properties();
}

/// Looks until the law that the bug breaks is found broken.
fn convict(plant: Plant, bounds: Bounds) {
    let bounds = Bounds { plant: Some(plant), ..bounds };
    let checker = bounds
        .checker()
        .threads(2)
        .finish_when(HasDiscoveries::AllOf([plant.breaks().name()].into()))
        .spawn_bfs()
        .join();
    let found = checker.discoveries();
    println!("{plant:?}: {:?} after {} states", found.keys(), checker.unique_state_count());
    assert!(found.contains_key(plant.breaks().name()), "{plant:?} broke {:?}", found.keys());
}

#[test]
fn a_reader_of_running_transactions_overlooks_nothing() {
    hold(reading());
    hold(rolling_back());
}

#[test]
fn a_process_that_takes_over_reads_on_where_each_cursor_stood() {
    hold(taking_over());
    hold(two_shards());
}

#[test]
fn a_crash_of_the_server_confuses_no_reader() {
    hold(server_crashing());
}

#[test]
fn zombies_publish_and_overtake_nobody() {
    hold(zombies());
    hold(unanswered());
}

#[test]
fn a_batch_that_fails_in_part_is_overtaken_by_nothing() {
    hold(pipelined());
    hold(pipelined_by_zombies());
}

/// No fault is in them, so the bound of duplicates is none.
#[test]
fn processes_that_come_and_go_politely_publish_each_message_once() {
    hold(sharing());
    hold(standing_by());
    hold(stopping());
    hold(stopping_in_two_windows());
}

#[test]
fn a_process_that_is_told_to_stop_repeats_nothing_that_was_confirmed_behind_trouble() {
    hold(stopping_with_trouble());
}

#[test]
fn a_held_key_forgets_nothing_and_is_overtaken_by_nobody() {
    hold(held());
    hold(held_while_written());
    hold(held_by_zombies());
}

#[test]
fn what_is_settled_is_not_published_again_by_who_reads_it_again() {
    hold(settled());
    hold(skipped());
    hold(skipped_by_zombies());
}

#[test]
fn a_key_whose_destination_is_down_forgets_nothing_and_is_overtaken_by_nobody() {
    hold(unavailable());
    hold(unavailable_while_written());
    hold(unavailable_and_pipelined());
    hold(unavailable_to_zombies());
}

#[test]
fn a_key_that_is_set_aside_forgets_nothing_and_is_overtaken_by_nobody() {
    hold(set_aside());
}

#[test]
fn what_is_settled_while_a_destination_is_down_is_not_published_again() {
    hold(unavailable_and_settled());
    hold(unavailable_and_skipped());
}

#[test]
fn what_was_confirmed_before_a_stop_that_came_too_late_is_not_published_again() {
    hold(stopping_too_late());
}

/// Each in a world in which, without it, the laws hold.
#[test]
fn every_planted_bug_breaks_its_law() {
    for (plant, bounds) in [
        (Plant::PositionCursor, reading()),
        (Plant::ReadsRunning, reading()),
        (Plant::BoundAtSnapshot, reading()),
        (Plant::PositionBeforeTransaction, reading()),
        (Plant::IdleBySequence, reading()),
        (Plant::OrderByTransaction, reading()),
        (Plant::MemoryOverCrash, server_crashing()),
        (Plant::RecordWithoutEpoch, zombies()),
        (Plant::PassedWhenSent, zombies()),
        (Plant::RetryOvertaken, unanswered()),
        (Plant::RestForgotten, unanswered()),
        (Plant::SideBySide, Bounds { pipelining: Pipelining::Unlimited, ..unanswered() }),
        (Plant::LeaveWithoutRecord, sharing()),
        (Plant::StopsAtOnce, stopping()),
        (Plant::StopsAtOnce, stopping_in_two_windows()),
        (Plant::HoldOvertaken, held()),
        (Plant::HoldWithoutSuccessors, held()),
        (Plant::ReleasedTooEarly, held_while_written()),
        (Plant::SettledForgotten, settled()),
        (Plant::SettledWithHold, settled()),
        (Plant::SettledForgotten, skipped()),
        (Plant::SkipUnheard, skipped()),
        (Plant::SettledCopied, skipped()),
        (Plant::SettledForgotten, unavailable_and_settled()),
        (Plant::SettledAtDestination, unavailable_and_skipped()),
        (Plant::SettledForgotten, stopping_too_late()),
        (Plant::DestinationOvertaken, unavailable()),
        (Plant::DestinationForgotten, unavailable()),
    ] {
        convict(plant, bounds);
    }
}
