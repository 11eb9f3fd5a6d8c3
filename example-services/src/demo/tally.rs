//! What the databases say: how far the orders are, what waits, and the sums that must agree.

use std::collections::BTreeMap;

use sqlx::PgPool;
use uuid::Uuid;

use super::databases::Databases;
use super::orders::Planned;
use crate::service;

/// How far the orders are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Progress {
    pub(super) placed: i64,
    pub(super) answered_by_stock: i64,
    pub(super) reserved: i64,
    pub(super) payments: i64,
    pub(super) shipments: i64,
    pub(super) completed: i64,
    pub(super) cancelled: i64,
}

impl Progress {
    pub(super) async fn read(databases: &Databases) -> Result<Progress, sqlx::Error> {
        // Against the way an order takes, so that no later step seems to be ahead of an earlier one.
        let shipments = count(&databases.shipping.pool, include_str!("sql/shipping_progress.sql")).await?;
        let payments = count(&databases.payment.pool, include_str!("sql/payment_progress.sql")).await?;
        let (answered_by_stock, reserved) =
            sqlx::query_as(include_str!("sql/stock_progress.sql")).fetch_one(&databases.stock.pool).await?;
        let (placed, completed, cancelled) =
            sqlx::query_as(include_str!("sql/order_progress.sql")).fetch_one(&databases.order.pool).await?;
        Ok(Progress { placed, answered_by_stock, reserved, payments, shipments, completed, cancelled })
    }

    /// Orders that wait for the payment service.
    pub(super) fn waiting_for_payment(&self) -> i64 {
        self.reserved - self.payments
    }
}

async fn count(pool: &PgPool, sql: &'static str) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar(sql).fetch_one(pool).await
}

/// Messages, from the four outboxes to the four inboxes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Messages {
    /// In the services' logs.
    pub(super) enqueued: i64,
    /// Different ones at the broker, if that can be counted.
    pub(super) published: Option<i64>,
    /// What each service has to do with them.
    pub(super) services: [Effects; 4],
}

/// What messages ask of one service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Effects {
    pub(super) service: &'static str,
    /// Messages of the kinds that it reacts to.
    pub(super) due: i64,
    /// Effects that are made: rows of its inbox.
    pub(super) made: i64,
    /// Keys that its consumer and its relay hold back.
    pub(super) held: i64,
}

impl Messages {
    pub(super) async fn read(databases: &Databases, broker_is_a_log: bool) -> Result<Messages, sqlx::Error> {
        let mut messages = Messages { enqueued: 0, published: None, services: [Effects::default(); 4] };
        // Against the way a message takes, so that no more effects seem to be made than are due.
        for (effects, (service, database)) in messages.services.iter_mut().zip(databases.of_services()) {
            effects.service = service;
            effects.made = count(&database.pool, include_str!("sql/handled.sql")).await?;
            effects.held = count(&database.pool, include_str!("sql/held.sql")).await?;
        }
        if broker_is_a_log {
            messages.published = Some(copies(databases).await?.1);
        }
        for (_, database) in databases.of_services() {
            let kinds: Vec<(String, i64)> =
                sqlx::query_as(include_str!("sql/enqueued.sql")).fetch_all(&database.pool).await?;
            for (kind, enqueued) in kinds {
                messages.enqueued += enqueued;
                for effects in &mut messages.services {
                    let reacts = |service: &&service::Definition| {
                        service.name == effects.service && service.kinds.contains(&kind.as_str())
                    };
                    effects.due +=
                        if service::ALL.iter().any(|service| reacts(&service)) { enqueued } else { 0 };
                }
            }
        }
        Ok(messages)
    }

    pub(super) fn effects_due(&self) -> i64 {
        self.services.iter().map(|effects| effects.due).sum()
    }

    pub(super) fn effects_made(&self) -> i64 {
        self.services.iter().map(|effects| effects.made).sum()
    }

    pub(super) fn held(&self) -> i64 {
        self.services.iter().map(|effects| effects.held).sum()
    }

    /// Messages that are not at the broker.
    pub(super) fn unpublished(&self) -> i64 {
        self.published.map_or(0, |published| (self.enqueued - published).max(0))
    }

    /// What is still to come, for a person; `None`: nothing.
    pub(super) fn waits(&self) -> Option<String> {
        let missing = |effects: &&Effects| effects.made < effects.due || effects.held > 0;
        let mut waits: Vec<String> = self.services.iter().filter(missing).map(Effects::text).collect();
        match self.unpublished() {
            0 => {}
            1 => waits.push("1 message to be published".to_owned()),
            more => waits.push(format!("{more} messages to be published")),
        }
        (!waits.is_empty()).then(|| waits.join(", "))
    }
}

impl Effects {
    fn text(&self) -> String {
        let Effects { service, due, made, held } = self;
        let held = match held {
            0 => String::new(),
            1 => " (1 key is held back)".to_owned(),
            keys => format!(" ({keys} keys are held back)"),
        };
        format!("{} effects of {service}{held}", (due - made).max(0))
    }
}

/// Of the broker's log, if it is one: messages it was given, and different ones.
pub(super) async fn copies(databases: &Databases) -> Result<(i64, i64), sqlx::Error> {
    sqlx::query_as(include_str!("sql/copies.sql")).fetch_one(&databases.broker.pool).await
}

/// Whether the order service's relay has published more than it has recorded: what a crash repeats.
pub(super) async fn unrecorded(databases: &Databases) -> Result<bool, sqlx::Error> {
    // In this order: what is recorded meanwhile can only make it seem less.
    let published =
        count_of_order(&databases.broker.pool, include_str!("sql/published.sql"), databases).await?;
    let status = outbox::admin::status(&databases.order.pool).await?;
    let pending: i64 = status.iter().map(|relay| relay.pending).sum();
    let enqueued =
        count_of_order(&databases.order.pool, include_str!("sql/published.sql"), databases).await?;
    Ok(published > enqueued - pending)
}

async fn count_of_order(pool: &PgPool, sql: &'static str, databases: &Databases) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar(sql).bind(format!("/{}", databases.order.name)).fetch_one(pool).await
}

/// The workflow of the first order that ended so.
pub(super) async fn workflow(databases: &Databases, ended: &str) -> Result<Option<Uuid>, sqlx::Error> {
    let pool = &databases.order.pool;
    sqlx::query_scalar(include_str!("sql/workflow.sql")).bind(ended).fetch_optional(pool).await
}

/// How many orders ended in each way, and how many of them as planned.
pub(super) async fn ends(
    databases: &Databases,
    planned: &[Planned],
) -> Result<(BTreeMap<String, i64>, i64), sqlx::Error> {
    let rows: Vec<(String, String)> =
        sqlx::query_as(include_str!("sql/ends.sql")).fetch_all(&databases.order.pool).await?;
    let wanted: BTreeMap<&str, &str> = planned
        .iter()
        .map(|planned| (planned.order.idempotency_key.as_str(), planned.ends.as_str()))
        .collect();
    let mut ends = BTreeMap::new();
    let mut as_planned = 0;
    for (key, end) in rows {
        as_planned += i64::from(wanted.get(key.as_str()) == Some(&end.as_str()));
        *ends.entry(end).or_default() += 1;
    }
    Ok((ends, as_planned))
}

/// Two sums, from different databases or different tables, that must be equal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Check {
    pub(super) left: (&'static str, i64),
    pub(super) right: (&'static str, i64),
}

impl Check {
    pub(super) fn holds(&self) -> bool {
        self.left.1 == self.right.1
    }
}

/// All checks. They hold once nothing is under way any more, and not before. A broker that is a log is counted too.
pub(super) async fn checks(
    databases: &Databases,
    planned: &[Planned],
    broker_is_a_log: bool,
) -> Result<Vec<Check>, sqlx::Error> {
    let asked = i64::try_from(planned.len()).unwrap_or(i64::MAX);
    let (_, as_planned) = ends(databases, planned).await?;
    let (completed, spent, pieces, cancelled): (i64, i64, i64, i64) =
        sqlx::query_as(include_str!("sql/order_sums.sql")).fetch_one(&databases.order.pool).await?;
    let (came_in, on_hand, set_aside, held, released, shipped): (i64, i64, i64, i64, i64, i64) =
        sqlx::query_as(include_str!("sql/stock_sums.sql")).fetch_one(&databases.stock.pool).await?;
    let (ledger, balances, refused, refunded): (i64, i64, i64, i64) =
        sqlx::query_as(include_str!("sql/payment_sums.sql")).fetch_one(&databases.payment.pool).await?;
    let (dispatched, undeliverable): (i64, i64) =
        sqlx::query_as(include_str!("sql/shipping_sums.sql")).fetch_one(&databases.shipping.pool).await?;
    let messages = Messages::read(databases, false).await?;
    let check = |left, right| Check { left, right };
    let mut checks = vec![
        check(("orders asked for", asked), ("orders ended (order)", completed + cancelled)),
        check(("orders asked for", asked), ("orders ended as planned (order)", as_planned)),
        check(("orders completed (order)", completed), ("shipments dispatched (shipping)", dispatched)),
        check(("orders completed (order)", completed), ("reservations shipped (stock)", shipped)),
        check(("cents of completed orders (order)", spent), ("cents in the ledger (payment)", ledger)),
        check(("cents in the ledger (payment)", ledger), ("cents in all balances (payment)", balances)),
        check(
            ("pieces of completed orders (order)", pieces),
            ("pieces that left (stock)", came_in - on_hand),
        ),
        check(("pieces set aside (stock)", set_aside), ("pieces of held reservations (stock)", held)),
        check(("reservations still held (stock)", held), ("none", 0)),
        check(("shipments refused (shipping)", undeliverable), ("payments refunded (payment)", refunded)),
        check(
            ("payments and shipments refused", refused + undeliverable),
            ("reservations released (stock)", released),
        ),
        check(
            ("effects due by messages (4 outboxes)", messages.effects_due()),
            ("effects made (4 inboxes)", messages.effects_made()),
        ),
        check(("keys held back", messages.held()), ("none", 0)),
    ];
    if broker_is_a_log {
        let (_, different) = copies(databases).await?;
        checks.push(check(
            ("messages enqueued (4 outboxes)", messages.enqueued),
            ("different messages at the broker", different),
        ));
    }
    Ok(checks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_still_to_come_is_named_by_service_and_nothing_is_if_nothing_is() {
        let effects = |service, due, made, held| Effects { service, due, made, held };
        let mut messages = Messages {
            enqueued: 7,
            published: Some(5),
            services: [
                effects("order", 4, 4, 0),
                effects("stock", 2, 1, 0),
                effects("payment", 9, 2, 7),
                effects("shipping", 3, 3, 1),
            ],
        };
        assert_eq!(
            messages.waits().as_deref(),
            Some(
                "1 effects of stock, 7 effects of payment (7 keys are held back), \
                 0 effects of shipping (1 key is held back), 2 messages to be published"
            )
        );
        messages.published = None;
        messages.services = [effects("order", 4, 4, 0); 4];
        assert_eq!(messages.waits(), None);
    }
}
