//! The inbox: the effect of a message happens once, in order for its key, however often and however late it arrives.
//!
//! [`admit`] is the rule in one function: called in the transaction that carries the effect, it tells the first copy of
//! a message from a repeat. [`Consumer`] runs [`Handler`]s by it: receive, one transaction, acknowledge; with retries,
//! held keys and parking. [`admin`] is for the person who looks after what is parked.
//!
//! The promise holds for effects in the database, and within a [`Horizon`]: a copy that comes later is refused and
//! parked, never handled again.

pub mod admin;
mod admit;
mod apply;
mod attempt;
mod audit;
mod backoff;
mod consumer;
mod day;
mod declared;
mod encoding;
mod floor;
mod handler;
mod hold;
mod horizon;
mod jobs;
mod kinds;
mod lanes;
mod measure;
mod moment;
mod outage;
mod outcome;
mod patience;
mod postpone;
mod process;
mod prune;
mod ready;
mod registration;
mod report;
mod retry;
mod run;
mod seldom;
mod slots;
mod statement;
mod stored;
mod turn;
mod unstorable;
mod waiting;

pub use admit::{Admission, AdmitError, admit, admit_all, admit_within};
pub use backoff::Backoff;
pub use consumer::{Consumer, ConsumerError};
pub use handler::{AnyHandler, ByFunction, ByTrait, Handler, HandlerError, HandlerFn, IntoHandler};
pub use horizon::{Horizon, InvalidHorizon, Refusal};
pub use prune::{Pruned, prune};
pub use ready::Ready;
pub use statement::Isolation;
