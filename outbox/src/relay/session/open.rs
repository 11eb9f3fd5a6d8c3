//! The way to the first shards: joining the relay, standing by, acquiring.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use message::Publisher;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::super::availability::SharedAvailability;
use super::super::claim::Unmade;
use super::super::holds::{Holds, Loaded};
use super::super::lanes::Lanes;
use super::super::routes::Router;
use super::super::settled::Settled;
use super::super::{Broker, Relay};
use super::{SUSPICIOUS, Session, Task};
use crate::log::{Cursor, Lease, LogConnection, LogError, Move, Reader, Refusal, Share, Store};
use crate::statement::within;

/// How long a step on the way to the first shards may take.
const ANSWER: Duration = Duration::from_secs(10);
/// How often a process without shards looks whether there are some for it.
const STANDBY: Duration = Duration::from_millis(250);

impl<'a, P: Publisher + 'static> Session<'a, P> {
    /// Joins the relay and takes its share of the shards, waiting while there is none for it. `None`: stopped while
    /// waiting. Says when it has `joined`: what fails afterwards may be over by itself, as when it stood still and was
    /// thought dead before it had a shard.
    pub(in super::super) async fn open(
        relay: &'a Relay<P>,
        broker: &Broker,
        process: Uuid,
        stop: &CancellationToken,
        joined: &mut bool,
    ) -> Result<Option<Self>, Refusal> {
        let mut log = LogConnection::open(&relay.pool).await?;
        let (mut store, lease) =
            within(ANSWER, Session::join(relay, broker, process, &mut log, joined)).await?;
        let mut tasks = JoinSet::new();
        let kept = Arc::clone(&lease);
        tasks.spawn(async move { Task::Lease(kept.keep().await) });
        let mut share = lease.shares();
        let (cursors, beyond) = loop {
            let now = share.borrow_and_update().clone();
            if !now.running {
                within(ANSWER, store.leave(log.connection())).await?;
                return Err(Refusal::Paused);
            }
            if now.next(0) == Move::Take || !now.owned.is_empty() {
                let cursors = within(ANSWER, store.acquire(log.connection(), now.most())).await?;
                if !cursors.is_empty() {
                    break (cursors, now.goes_beyond());
                }
            }
            tokio::select! {
                () = stop.cancelled() => {
                    within(ANSWER, store.leave(log.connection())).await?;
                    return Ok(None);
                }
                ended = tasks.join_next() => return Err(match ended {
                    Some(Ok(Task::Lease(Err(error)))) => error.into(),
                    _ => LogError::ConnectionReplaced.into(),
                }),
                waited = stand_by(&mut log, &relay.name, &lease, &mut share) => waited?,
            }
        };
        let session = within(ANSWER, Session::begin(relay, log, store, &cursors, lease, tasks)).await?;
        Ok(Some(Session { beyond, ..session }))
    }

    /// Joins the relay, as a process that owns nothing yet.
    async fn join(
        relay: &Relay<P>,
        broker: &Broker,
        process: Uuid,
        log: &mut LogConnection,
        joined: &mut bool,
    ) -> Result<(Store, Arc<Lease>), Refusal> {
        let settings = &relay.settings;
        if let Some(destination) = &broker.log
            && *destination == crate::log::name(log.connection()).await?
        {
            return Err(Refusal::Itself);
        }
        let store =
            Store::join(log, &relay.name, process, settings.shards, settings.start, settings.lease).await?;
        *joined = true;
        relay.register_destination(&store, log).await?;
        if store.shards() != settings.shards {
            let (relay, shards, asked) = (&relay.name, store.shards(), settings.shards);
            tracing::info!(relay, shards, asked, "it keeps the number of shards that it began with");
        }
        let lease = Lease::begin(relay.pool.clone(), relay.name.clone(), process, settings.lease).await?;
        // Thought dead between two statements: it must join again before it may own anything.
        Ok((store, Arc::new(lease.ok_or(LogError::ConnectionReplaced)?)))
    }

    /// Reads from the cursors acquired.
    async fn begin(
        relay: &'a Relay<P>,
        log: LogConnection,
        store: Store,
        cursors: &[Cursor],
        lease: Arc<Lease>,
        mut tasks: JoinSet<Task>,
    ) -> Result<Self, Refusal> {
        let settings = &relay.settings;
        let epochs: BTreeMap<_, _> = cursors.iter().map(|cursor| (cursor.shard, cursor.epoch)).collect();
        let owned: Vec<i16> = epochs.keys().copied().collect();
        tracing::info!(relay = relay.name, shards = ?owned, "shards acquired");
        let shards = store.shards();
        let suspects = cursors.iter().filter(|cursor| cursor.crashes >= SUSPICIOUS);
        let suspects: BTreeMap<_, _> = suspects.map(|cursor| (cursor.shard, cursor.crashes)).collect();
        let progress = cursors.iter().map(|cursor| cursor.shard).zip(Reader::progress(cursors)).collect();
        let mut lanes = Lanes::new(relay.publisher.pipelining());
        let Loaded { keys: held, destinations } =
            Holds::<P>::load(&relay.pool, &relay.name, shards, &owned).await?;
        let availability = Arc::new(SharedAvailability::new(settings.unavailable));
        let now = Instant::now();
        availability.with(|state| {
            destinations.into_iter().for_each(|destination| state.has_waited(destination, now))
        });
        let changes = availability.subscribe();
        let settled = Settled::load(&relay.pool, &relay.name, shards, &owned).await?;
        let eras = store.eras().clone();
        for (position, key) in &held {
            key.iter().for_each(|key| lanes.hold(Arc::clone(key), *position));
        }

        let (page_sender, pages) = mpsc::channel(1);
        let (records, record_receiver) = mpsc::channel(1);
        let (notice_sender, notices) = mpsc::channel(1);
        let (held_count, held_receiver) = watch::channel(held.len());
        let holds_stop = CancellationToken::new();
        let share = lease.shares();
        let reader = Reader::new(log, store, cursors, settings.read.clone(), Arc::clone(&lease))
            .await?
            .with_doorbell(relay.doorbell.subscribe());
        tasks.spawn(async move { Task::Reader(reader.run(page_sender, record_receiver).await) });
        let holds = Holds {
            relay: relay.name.clone(),
            pool: relay.pool.clone(),
            publisher: Arc::clone(&relay.publisher),
            settings: settings.clone(),
            shards,
            epochs: epochs.clone(),
            acquired: now,
            lease: Arc::clone(&lease),
            notices: notice_sender,
            availability: Arc::clone(&availability),
            unmade: Unmade::default(),
            stop: holds_stop.clone(),
        };
        tasks.spawn(async move {
            holds.run(held_receiver).await;
            Task::Holds
        });
        Ok(Session {
            relay,
            settings,
            shards,
            epochs,
            acquired: Instant::now(),
            beyond: false,
            share,
            lease,
            lanes,
            router: Router::new(settings.routes.clone()),
            progress,
            batches: HashMap::new(),
            last_batch: 0,
            on_wire: 0,
            outcomes: mpsc::unbounded_channel(),
            pages: Some(pages),
            records: Some(records),
            notices,
            writing: None,
            writing_copies: HashSet::new(),
            writing_waits: HashSet::new(),
            new_holds: Vec::new(),
            copies: Vec::new(),
            copied_bytes: 0,
            held,
            releasing: BTreeSet::new(),
            held_count,
            settled,
            settled_since: Instant::now(),
            eras,
            suspects,
            on_suspicion: false,
            confirmed: 0,
            moved: false,
            quiet_since: Instant::now(),
            resting: Vec::new(),
            availability,
            changes,
            read_to: 0,
            looking: JoinSet::new(),
            look_beyond_at: now,
            looked_to: None,
            publishing: JoinSet::new(),
            tasks,
            holds_stop,
            holds_ended: false,
            ending: None,
            leaving: false,
        })
    }
}

/// Until the sharing has changed, or for a while.
async fn stand_by(
    log: &mut LogConnection,
    relay: &str,
    lease: &Lease,
    share: &mut watch::Receiver<Share>,
) -> Result<(), LogError> {
    tokio::select! {
        _ = share.changed() => {}
        () = tokio::time::sleep(STANDBY) => {
            let asked = Instant::now();
            lease.has_seen(log.look(relay).await?.changes, asked);
        }
    }
    Ok(())
}
