//! What happens: orders come in; payment is killed and stays down; a relay is killed under load; payment returns, and the
//! workflow completes by itself.

use std::time::{Duration, Instant};

use super::DemoError;
use super::databases::Databases;
use super::fleet::Fleet;
use super::orders::Planned;
use super::place::Placing;
use super::say::Say;
use super::tally::{self, Check, Messages, Progress};

const BETWEEN_LOOKS: Duration = Duration::from_millis(100);
/// How long the relay's killer waits for the moment in which something is published and not recorded: it makes copies.
const UNRECORDED: Duration = Duration::from_secs(4);
const BETWEEN_LINES: Duration = Duration::from_millis(1_000);
/// How long nothing at all may happen before we give up.
const PATIENCE: Duration = Duration::from_secs(45);
/// Orders are placed within about so many seconds, and no slower than so many a second.
const PLACING_SECONDS: f64 = 9.0;
const SLOWEST: f64 = 30.0;

/// What the story leaves to tell.
pub(super) struct Told {
    pub(super) checks: Vec<Check>,
    pub(super) repeated_requests: usize,
    /// Copies that the payment service had discarded when it was killed, and with it its counters.
    pub(super) discarded_before_kill: u64,
}

/// Those who act in it.
pub(super) struct Stage<'s> {
    pub(super) say: Say,
    pub(super) databases: &'s Databases,
    pub(super) fleet: &'s mut Fleet,
    pub(super) client: reqwest::Client,
    pub(super) broker_is_a_log: bool,
}

/// What happens while orders come in.
#[derive(Clone, Copy)]
enum Act {
    KillPayment,
    KillRelay,
    StartRelay,
}

/// When each happens: once so much of the orders is placed.
const SCRIPT: [(f64, Act); 3] = [(0.3, Act::KillPayment), (0.55, Act::KillRelay), (0.75, Act::StartRelay)];

impl Stage<'_> {
    /// Plays it to its end. Afterwards nothing is under way any more.
    pub(super) async fn play(mut self, orders: &[Planned]) -> Result<Told, DemoError> {
        let a_second = SLOWEST.max(orders.len() as f64 / PLACING_SECONDS);
        let address = self.fleet.order.address.clone();
        let mut placing = Placing::start(self.client.clone(), &address, orders, a_second);
        let mut script = SCRIPT.into_iter().peekable();
        let mut watch = Watch::new();
        let mut discarded_before_kill = 0;
        while !placing.done()? {
            self.look(&mut watch).await?;
            let placed = placing.placed() as f64 / orders.len() as f64;
            while let Some((_, act)) = script.next_if(|(after, _)| placed > *after) {
                discarded_before_kill += self.perform(act).await?;
            }
        }
        // A few orders may all be placed before it was time.
        for (_, act) in script {
            discarded_before_kill += self.perform(act).await?;
        }
        watch.all_placed = true;
        self.say.now(format_args!("all {} orders are placed", orders.len()));

        while self.look(&mut watch).await?.answered_by_stock < watch.seen.placed {
            if watch.changed.elapsed() > PATIENCE {
                return Err(DemoError::Stuck { seconds: PATIENCE.as_secs() });
            }
        }
        self.say.now(format_args!(
            "backlog: {} orders wait for the payment service, which is still down; the other services go on",
            watch.seen.waiting_for_payment()
        ));
        self.fleet.payment.service.restart()?;
        self.fleet.payment.address = self.fleet.payment.service.address().await?;
        self.say.now("the payment service is started again");

        let checks = self.settle(&mut watch, orders).await?;
        Ok(Told { checks, repeated_requests: placing.repeated(), discarded_before_kill })
    }

    /// One act; how many copies the one who dies in it had discarded, since its counts die with it.
    async fn perform(&mut self, act: Act) -> Result<u64, DemoError> {
        let (payment, relay) = (&mut self.fleet.payment, &mut self.fleet.order.relay);
        match act {
            Act::KillPayment => {
                let discarded = discarded(&self.client, &payment.address).await?;
                let pid = payment.service.pid();
                payment.service.kill();
                self.say.now(format_args!("kill -9 {pid}: the payment service is gone, and stays down"));
                return Ok(discarded);
            }
            Act::KillRelay => {
                let pid = relay.pid();
                let moment = Instant::now();
                while self.broker_is_a_log
                    && moment.elapsed() < UNRECORDED
                    && !tally::unrecorded(self.databases).await?
                {
                    tokio::time::sleep(BETWEEN_LOOKS).await;
                }
                relay.kill();
                self.say.now(format_args!("kill -9 {pid}: the order service's relay is gone, under load"));
            }
            Act::StartRelay => {
                relay.restart()?;
                self.say.now("the order service's relay is started again");
            }
        }
        Ok(0)
    }

    /// Waits until no effect is due and nothing waits to be published any more; then the checks, as they are.
    async fn settle(&mut self, watch: &mut Watch, orders: &[Planned]) -> Result<Vec<Check>, DemoError> {
        loop {
            self.look(watch).await?;
            let messages = watch.messages;
            let applied = messages.effects_made() >= messages.effects_due();
            // The last message of a workflow has no effect to wait for; its relay may have been the one that was killed.
            let published = messages.unpublished() == 0;
            if (watch.ended() && applied && published) || watch.is_tired() {
                self.say.now(watch.line());
                return Ok(tally::checks(self.databases, orders, self.broker_is_a_log).await?);
            }
        }
    }

    async fn look(&mut self, watch: &mut Watch) -> Result<Progress, DemoError> {
        tokio::time::sleep(BETWEEN_LOOKS).await;
        self.fleet.alive()?;
        let progress = Progress::read(self.databases).await?;
        let due = watch.saw(progress);
        // They are counted over whole logs, so seldom while there is no end to be waited for.
        if due || watch.all_placed {
            watch.counted(Messages::read(self.databases, self.broker_is_a_log).await?);
        }
        if due {
            self.say.now(watch.line());
        }
        Ok(progress)
    }
}

/// Copies that a service has discarded since it started.
pub(super) async fn discarded(client: &reqwest::Client, address: &str) -> Result<u64, reqwest::Error> {
    let counts: std::collections::BTreeMap<String, u64> =
        client.get(format!("{address}/stats")).send().await?.json().await?;
    Ok(counts.get("repeat").copied().unwrap_or_default())
}

/// What was seen last, when it changed, and when a line was printed.
struct Watch {
    seen: Progress,
    changed: Instant,
    printed: Option<Instant>,
    messages: Messages,
    moved: Instant,
    /// No order is placed any more.
    all_placed: bool,
}

impl Watch {
    fn new() -> Self {
        let (seen, now) = (Progress::default(), Instant::now());
        let messages = Messages { enqueued: 0, published: None, services: Default::default() };
        Watch { seen, changed: now, printed: None, messages, moved: now, all_placed: false }
    }

    /// Takes note; whether it is time for a line.
    fn saw(&mut self, progress: Progress) -> bool {
        if progress != self.seen {
            self.seen = progress;
            self.changed = Instant::now();
        }
        let due = self.printed.is_none_or(|printed| printed.elapsed() >= BETWEEN_LINES);
        if due {
            self.printed = Some(Instant::now());
        }
        due
    }

    fn counted(&mut self, messages: Messages) {
        if messages != self.messages {
            self.messages = messages;
            self.moved = Instant::now();
        }
    }

    /// Whether no message has moved for too long.
    fn is_tired(&self) -> bool {
        self.moved.elapsed() > PATIENCE
    }

    /// Whether every order has ended. Effects may still be due: a refund, pieces that are put back.
    fn ended(&self) -> bool {
        self.all_placed && self.seen.completed + self.seen.cancelled == self.seen.placed
    }

    /// How far the orders are, or, once they have ended, what is waited for.
    fn line(&self) -> String {
        let (made, due, held) =
            (self.messages.effects_made(), self.messages.effects_due(), self.messages.held());
        if let Some(waits) = self.messages.waits().filter(|_| self.ended()) {
            return format!("every order has ended; effects {made} of {due}; still to come: {waits}");
        }
        let Progress { placed, answered_by_stock, payments, shipments, completed, cancelled, .. } = self.seen;
        format!(
            "placed {placed:4}   stock {answered_by_stock:4}   payment {payments:4}   shipping {shipments:4}   completed {completed:4}   cancelled {cancelled:4}   effects {made} of {due}   held back {held}"
        )
    }
}
