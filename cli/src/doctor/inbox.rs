//! What the inbox of a database says about its floor: the moment before which its consumers take no message.

use ::inbox::admin::FloorStatus;
use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};

use super::{HURTS, Line, UNSAFE};

/// A message that is younger is new, whatever the horizon.
const FRESH: TimeDelta = TimeDelta::days(1);

/// Of a clock that is wrong.
pub(super) const CLOCKS: &str = "clocks_differ";

/// What is wrong with the floor.
pub(super) fn floor(status: &FloorStatus) -> Vec<Line> {
    [clocks(status), ahead(status), behind(status)].into_iter().flatten().collect()
}

fn clocks(status: &FloorStatus) -> Option<Line> {
    let difference = status.clock_difference?;
    let side = if difference < TimeDelta::zero() { "behind" } else { "ahead of" };
    Some(Line {
        name: CLOCKS,
        severity: HURTS,
        what: format!(
            "the database's clock is {} s {side} this machine's: a consumer that sees such a difference removes no rows",
            difference.num_seconds().abs()
        ),
        remedy: "set the clock that is wrong".to_owned(),
    })
}

fn ahead(status: &FloorStatus) -> Option<Line> {
    let from = status.due.max(status.emptied_before.unwrap_or(status.due));
    if status.floor <= status.due || status.clock_difference.is_some() {
        return None;
    }
    let refused = format!(
        "the inbox refuses what was made before {}, although the longest horizon reaches back to {}",
        moment(status.floor),
        moment(status.due)
    );
    if !status.can_be_lowered() {
        return Some(Line {
            name: "inbox_floor",
            severity: HURTS,
            what: format!("{refused}; the rows of the time between are removed"),
            remedy: "none: it passes when the horizon has grown to it; look at what is parked as too old"
                .to_owned(),
        });
    }
    let severity = if status.floor > status.database_time - FRESH { UNSAFE } else { HURTS };
    Some(Line {
        name: "inbox_floor",
        severity,
        what: format!("{refused}; its rows are complete from {} on", moment(from)),
        remedy: "outbox repair inbox, then redrive what was parked as too old".to_owned(),
    })
}

fn behind(status: &FloorStatus) -> Option<Line> {
    let running = status.running_since.filter(|_| status.is_behind())?;
    Some(Line {
        name: "inbox_not_pruned",
        severity: HURTS,
        what: format!(
            "rows past the horizon stay: a consumer has run since {}, and the floor is {}",
            moment(running),
            moment(status.floor)
        ),
        remedy: "look for \"nothing is pruned\" and \"could not prune\" in the logs of its consumers"
            .to_owned(),
    })
}

fn moment(moment: DateTime<Utc>) -> String {
    moment.to_rfc3339_opts(SecondsFormat::Secs, true)
}
