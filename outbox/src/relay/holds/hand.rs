//! Which held keys are tried together, which alone, and which are being tried. No I/O.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use tokio::time::Instant;

use super::Due;

/// Tries under way side by side, each of many keys.
const SIDE_BY_SIDE: usize = 4;
/// Destinations that are back whose keys are looked for at once.
const BACK: usize = 64;
/// Most messages of one try.
const MOST: usize = 500;
/// Attempts up to which a key is tried in a group though it may have ended the process: a death costs each of them one.
const SHARED: i32 = 2;
/// The largest group of these.
const GROUP: usize = 64;
/// Keys tried alone in one go.
const ALONE: usize = 32;
/// How long what is to be tried by itself waits for others to end, before no others begin.
const TURN: Duration = Duration::from_millis(100);

/// Keys to try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Plan {
    /// Together with others.
    Together(Vec<Due>),
    /// While nothing else is tried: a group, then keys one after the other.
    Exclusive {
        /// The group.
        group: Vec<Due>,
        /// The keys.
        alone: Vec<Due>,
    },
    /// One, for the destination that it waits for.
    Probe(Due, Arc<str>),
}

impl Plan {
    fn keys(&self) -> Vec<i64> {
        match self {
            Plan::Together(keys) => keys.iter().map(|key| key.position).collect(),
            Plan::Exclusive { group, alone } => group.iter().chain(alone).map(|key| key.position).collect(),
            Plan::Probe(key, _) => vec![key.position],
        }
    }
}

type Ended = (Plan, Result<(), sqlx::Error>);

/// What is being tried, and what was found due.
pub(super) struct Hand<'h> {
    batch: usize,
    max_attempts: i32,
    running: FuturesUnordered<BoxFuture<'h, Ended>>,
    /// Tries that have ended and were not reported yet.
    done: VecDeque<Ended>,
    positions: HashSet<i64>,
    probed: HashSet<Arc<str>>,
    /// The last destination whose keys were looked for when it was back: the next ones have their turn.
    last_back: Option<Arc<str>>,
    exclusive: bool,
    /// What was tried last was tried by itself: others have their turn.
    was_exclusive: bool,
    offered: VecDeque<Due>,
    /// How large the next group is of what may have ended the process.
    group: usize,
    /// Since when something waits to be tried by itself.
    waits_since: Option<Instant>,
}

impl<'h> Hand<'h> {
    pub(super) fn new(batch: usize, max_attempts: u32) -> Self {
        Hand {
            batch: batch.clamp(1, MOST),
            max_attempts: i32::try_from(max_attempts).unwrap_or(i32::MAX),
            running: FuturesUnordered::new(),
            done: VecDeque::new(),
            positions: HashSet::new(),
            probed: HashSet::new(),
            last_back: None,
            exclusive: false,
            was_exclusive: false,
            offered: VecDeque::new(),
            group: 1,
            waits_since: None,
        }
    }

    /// Nothing is being tried.
    pub(super) fn is_empty(&self) -> bool {
        self.running.is_empty() && self.done.is_empty()
    }

    /// Goes on with what is being tried while something other is waited for: each may have a connection for which that waits.
    pub(super) async fn beside<T>(&mut self, other: impl Future<Output = T>) -> T {
        let mut other = std::pin::pin!(other);
        loop {
            tokio::select! {
                biased;
                result = &mut other => return result,
                Some(ended) = self.running.next() => self.done.push_back(ended),
            }
        }
    }

    /// Something is being tried by itself.
    pub(super) fn is_exclusive(&self) -> bool {
        self.exclusive
    }

    /// Whether another try may begin.
    pub(super) fn has_room(&self) -> bool {
        self.side_by_side() < SIDE_BY_SIDE
    }

    /// Tries under way, but for probes: these are bounded by themselves.
    fn side_by_side(&self) -> usize {
        (self.running.len() + self.done.len()).saturating_sub(self.probed.len())
    }

    /// How many keys to look for: as many as can begin now.
    pub(super) fn limit(&self) -> usize {
        self.batch * SIDE_BY_SIDE.saturating_sub(self.side_by_side())
    }

    /// The holds that are being tried.
    pub(super) fn positions(&self) -> Vec<i64> {
        self.positions.iter().copied().collect()
    }

    /// Whether a destination is being probed.
    pub(super) fn probes(&self, destination: &str) -> bool {
        self.probed.contains(destination)
    }

    /// Whether something has waited long enough to be tried by itself: nothing else begins before it.
    pub(super) fn gives_way(&self, now: Instant) -> bool {
        self.waits_since.is_some_and(|since| now.duration_since(since) >= TURN)
    }

    /// Destinations that are being probed.
    pub(super) fn probing(&self) -> usize {
        self.probed.len()
    }

    /// Of the destinations that are back, in order, those whose keys are looked for now: each has its turn.
    pub(super) fn next_back(&mut self, mut back: Vec<Arc<str>>) -> Vec<Arc<str>> {
        if !self.has_room() {
            return Vec::new();
        }
        if let Some(last) = &self.last_back {
            let after = back.partition_point(|destination| destination <= last);
            back.rotate_left(after);
        }
        back.truncate(BACK);
        self.last_back = back.last().cloned();
        back
    }

    /// Keys that are due.
    pub(super) fn offer(&mut self, due: Vec<Due>) {
        self.offered.extend(due.into_iter().filter(|key| !self.positions.contains(&key.position)));
    }

    /// What to begin with, of what was offered since the last time.
    pub(super) fn plans(&mut self, now: Instant) -> Vec<Plan> {
        if !self.has_room() {
            self.offered.clear();
            return Vec::new();
        }
        let (mut fresh, mut group, mut alone) = (Vec::new(), Vec::new(), Vec::new());
        for key in self.offered.drain(..) {
            if key.attempts == 0 && self.max_attempts > 1 {
                fresh.push(key);
            } else if key.attempts <= SHARED && key.attempts + 1 < self.max_attempts {
                group.push(key);
            } else {
                alone.push(key);
            }
        }
        if group.is_empty() && alone.is_empty() {
            self.waits_since = None;
        } else {
            let since = *self.waits_since.get_or_insert(now);
            let its_turn = !self.was_exclusive || fresh.is_empty();
            if self.is_empty() && its_turn {
                group.truncate(self.group.min(self.batch));
                alone.truncate(ALONE);
                self.waits_since = None;
                return vec![Plan::Exclusive { group, alone }];
            }
            if now.duration_since(since) >= TURN {
                return Vec::new();
            }
        }
        let room = SIDE_BY_SIDE.saturating_sub(self.side_by_side());
        fresh.chunks(self.batch).take(room).map(|keys| Plan::Together(keys.to_vec())).collect()
    }

    /// A try begins.
    pub(super) fn begin(&mut self, plan: Plan, attempt: BoxFuture<'h, Result<(), sqlx::Error>>) {
        self.positions.extend(plan.keys());
        match &plan {
            Plan::Exclusive { .. } => self.exclusive = true,
            Plan::Probe(_, destination) => drop(self.probed.insert(Arc::clone(destination))),
            Plan::Together(_) => {}
        }
        self.running.push(attempt.map(|result| (plan, result)).boxed());
    }

    /// Waits for a try to end; its error. `None`: nothing is being tried.
    pub(super) async fn ended(&mut self) -> Option<Option<sqlx::Error>> {
        let (plan, result) = match self.done.pop_front() {
            Some(ended) => ended,
            None => self.running.next().await?,
        };
        for position in plan.keys() {
            self.positions.remove(&position);
        }
        match &plan {
            Plan::Exclusive { group, .. } => {
                (self.exclusive, self.was_exclusive) = (false, true);
                if !group.is_empty() && result.is_ok() {
                    self.group = (self.group * 2).min(GROUP);
                }
            }
            Plan::Probe(_, destination) => drop(self.probed.remove(destination)),
            Plan::Together(_) => self.was_exclusive = false,
        }
        Some(result.err())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn due(position: i64, attempts: i32) -> Due {
        Due { position, shard: 0, epoch: 1, attempts }
    }

    fn keys(plans: &[Plan]) -> Vec<Vec<i64>> {
        plans.iter().map(Plan::keys).collect()
    }

    async fn end(hand: &mut Hand<'_>) {
        assert!(matches!(hand.ended().await, Some(None)));
    }

    #[tokio::test]
    async fn keys_without_an_attempt_are_tried_many_at_a_time() {
        let mut hand = Hand::new(3, 10);
        hand.offer((1..=15).map(|position| due(position, 0)).collect());
        let plans = hand.plans(Instant::now());
        assert_eq!(keys(&plans), [[1, 2, 3], [4, 5, 6], [7, 8, 9], [10, 11, 12]]);
        for plan in plans {
            hand.begin(plan, Box::pin(async { Ok(()) }));
        }
        hand.offer(vec![due(1, 0), due(13, 0)]);
        assert_eq!(hand.plans(Instant::now()), [], "no room");
        for _ in 0..SIDE_BY_SIDE {
            end(&mut hand).await;
        }
        hand.offer(vec![due(1, 0)]);
        assert_eq!(keys(&hand.plans(Instant::now())), [[1]]);
    }

    #[tokio::test]
    async fn what_may_have_ended_the_process_is_tried_by_itself_in_groups_that_grow_with_success() {
        let mut hand = Hand::new(500, 10);
        let (mut left, mut groups) = ((1..=300).collect::<Vec<i64>>(), Vec::new());
        while !left.is_empty() {
            hand.offer(left.iter().map(|position| due(*position, 2)).collect());
            let plans = hand.plans(Instant::now());
            let [Plan::Exclusive { group, alone }] = &plans[..] else { panic!("{plans:?}") };
            assert_eq!(alone, &[]);
            groups.push(group.len());
            left.drain(..group.len());
            hand.begin(plans[0].clone(), Box::pin(async { Ok(()) }));
            assert!(hand.is_exclusive());
            end(&mut hand).await;
        }
        assert_eq!(groups, [1, 2, 4, 8, 16, 32, 64, 64, 64, 45]);
    }

    #[tokio::test]
    async fn each_destination_that_is_back_has_its_turn() {
        let mut hand = Hand::new(500, 10);
        let back: Vec<Arc<str>> = (0..BACK * 2 + 1).map(|number| format!("{number:04}").into()).collect();
        let mut turns = HashSet::new();
        for _ in 0..3 {
            let turn = hand.next_back(back.clone());
            assert_eq!(turn.len(), BACK);
            turns.extend(turn);
        }
        assert_eq!(turns.len(), back.len());
        assert_eq!(hand.next_back(back[..1].to_vec()), back[..1]);
        for position in 1..=4 {
            hand.begin(Plan::Together(vec![due(position, 0)]), Box::pin(async { Ok(()) }));
        }
        assert_eq!(hand.next_back(back).len(), 0, "no room");
    }

    #[test]
    fn the_last_attempt_is_made_alone_and_so_is_any_after_two_deaths_that_were_shared() {
        for (attempts, max_attempts, shares) in
            [(1, 3, true), (2, 3, false), (2, 4, true), (3, 10, false), (0, 1, false), (0, 2, true)]
        {
            let mut hand = Hand::new(500, max_attempts);
            hand.offer(vec![due(1, attempts)]);
            let plans = hand.plans(Instant::now());
            let alone = matches!(&plans[..], [Plan::Exclusive { group, .. }] if group.is_empty());
            assert_eq!(!alone, shares, "{attempts} of {max_attempts}");
        }
    }

    #[tokio::test]
    async fn what_is_to_be_tried_by_itself_is_not_kept_waiting_by_others() {
        let mut hand = Hand::new(500, 10);
        let now = Instant::now();
        hand.begin(Plan::Together(vec![due(1, 0)]), Box::pin(async { Ok(()) }));
        hand.offer(vec![due(2, 5), due(3, 0)]);
        assert_eq!(keys(&hand.plans(now)), [[3]]);
        hand.offer(vec![due(2, 5), due(4, 0)]);
        assert_eq!(hand.plans(now + TURN), []);
        end(&mut hand).await;
        hand.offer(vec![due(2, 5), due(4, 0)]);
        let mut plans = hand.plans(now + TURN);
        assert_eq!(keys(&plans), [[2]]);
        hand.begin(plans.remove(0), Box::pin(async { Ok(()) }));
        end(&mut hand).await;
        hand.offer(vec![due(5, 5), due(4, 0)]);
        assert_eq!(keys(&hand.plans(now + TURN)), [[4]], "nor does it keep others waiting");
    }
}
