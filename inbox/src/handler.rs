//! What a service does with a message: a [`Handler`], its effect in the transaction it is given, and how it fails.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use message::{DecodeError, Message};
use sqlx::PgTransaction;

/// Does what a message asks for, in the transaction that admits it: everything or nothing, once.
///
/// Write on `tx` and nowhere else: what is written on another connection, sent or called happens again when the message
/// is tried again. Nothing of a try stays that fails, panics or takes longer than the consumer's handler timeout. A
/// handler must not end the transaction by SQL of its own, nor block its thread, nor give up waiting for a savepoint: the
/// driver ends the whole transaction when `tx.begin()` is cancelled, and what is written then commits by itself. Its message is
/// parked at once. What it sets, it sets with `set local`.
///
/// ```
/// use inbox::{Handler, HandlerError};
/// use message::Message;
/// use sqlx::PgTransaction;
///
/// struct Ship;
///
/// #[async_trait::async_trait]
/// impl Handler for Ship {
///     async fn handle(&self, tx: &mut PgTransaction<'_>, message: &Message) -> Result<(), HandlerError> {
///         let order: u64 = message.decode()?;
///         let order = i64::try_from(order).map_err(|_| HandlerError::reject("order number out of range"))?;
///         sqlx::query("insert into shipment (ordered) values ($1)").bind(order).execute(&mut **tx).await?;
///         Ok(())
///     }
/// }
/// ```
///
/// A function or a closure does too:
///
/// ```
/// # use inbox::{HandlerError, IntoHandler};
/// # use message::Message;
/// # use sqlx::PgTransaction;
/// async fn ship(tx: &mut PgTransaction<'_>, message: &Message) -> Result<(), HandlerError> {
///     sqlx::query("insert into shipment (message) values ($1)").bind(message.id.as_uuid()).execute(&mut **tx).await?;
///     Ok(())
/// }
/// # fn takes<By>(_: impl IntoHandler<By>) {}
/// # takes(ship);
/// let forget = async |_: &mut PgTransaction<'_>, _: &Message| Ok(());
/// # takes(forget);
/// ```
#[async_trait]
pub trait Handler: Send + Sync {
    /// Handles one message.
    ///
    /// # Errors
    /// By `?`: tried again later, the messages of its key behind it. By [`HandlerError::reject`], and by `?` on a payload
    /// that could not be decoded: parked at once.
    async fn handle(&self, tx: &mut PgTransaction<'_>, message: &Message) -> Result<(), HandlerError>;
}

/// What a consumer takes as a handler: a [`Handler`], or an async function or closure with its signature. `By` tells them
/// apart and is never written.
pub trait IntoHandler<By> {
    /// As the consumer keeps it.
    fn into_handler(self) -> AnyHandler;
}

/// A handler as a consumer keeps it.
#[derive(Clone)]
pub struct AnyHandler(pub(crate) Arc<dyn Handle>);

/// [`Handler`] with the one lifetime that transactions of the consumer have: for a function that is generic over it, the
/// compiler cannot prove that it outlives the reference.
#[async_trait]
pub(crate) trait Handle: Send + Sync {
    async fn handle(&self, tx: &mut PgTransaction<'static>, message: &Message) -> Result<(), HandlerError>;
}

/// See [`IntoHandler`].
#[derive(Debug)]
pub struct ByTrait(());

/// See [`IntoHandler`].
#[derive(Debug)]
pub struct ByFunction(());

struct OfTrait<H>(H);
struct OfFunction<F>(F);

impl<H: Handler + 'static> IntoHandler<ByTrait> for H {
    fn into_handler(self) -> AnyHandler {
        AnyHandler(Arc::new(OfTrait(self)))
    }
}

impl<F> IntoHandler<ByFunction> for F
where
    F: for<'a> HandlerFn<'a> + Send + Sync + 'static,
{
    fn into_handler(self) -> AnyHandler {
        AnyHandler(Arc::new(OfFunction(self)))
    }
}

#[async_trait]
impl<H: Handler> Handle for OfTrait<H> {
    async fn handle(&self, tx: &mut PgTransaction<'static>, message: &Message) -> Result<(), HandlerError> {
        self.0.handle(tx, message).await
    }
}

#[async_trait]
impl<F> Handle for OfFunction<F>
where
    F: for<'a> HandlerFn<'a> + Send + Sync,
{
    async fn handle(&self, tx: &mut PgTransaction<'static>, message: &Message) -> Result<(), HandlerError> {
        self.0.call(tx, message).await
    }
}

/// An async function or closure with the signature of [`Handler::handle`].
pub trait HandlerFn<'a> {
    /// What it returns.
    type Answer: Future<Output = Result<(), HandlerError>> + Send + 'a;

    /// Calls it.
    fn call(&self, tx: &'a mut PgTransaction<'static>, message: &'a Message) -> Self::Answer;
}

impl<'a, F, Answer> HandlerFn<'a> for F
where
    F: Fn(&'a mut PgTransaction<'static>, &'a Message) -> Answer,
    Answer: Future<Output = Result<(), HandlerError>> + Send + 'a,
{
    type Answer = Answer;

    fn call(&self, tx: &'a mut PgTransaction<'static>, message: &'a Message) -> Answer {
        self(tx, message)
    }
}

impl fmt::Debug for AnyHandler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AnyHandler")
    }
}

/// Why a message was not handled. `?` makes one of any error: the message is tried again, unless its payload could not be
/// decoded ([`Message::decode`]). That is the message's fault, so it is parked at once.
pub struct HandlerError {
    pub(crate) parks: bool,
    pub(crate) source: Box<dyn Error + Send + Sync>,
}

impl HandlerError {
    /// No further try would help: the message is parked at once and waits for a person.
    pub fn reject(reason: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        HandlerError { parks: true, source: reason.into() }
    }

    /// Tried again later, whatever the reason.
    pub fn retry(reason: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        HandlerError { parks: false, source: reason.into() }
    }
}

impl<E: Into<Box<dyn Error + Send + Sync>>> From<E> for HandlerError {
    fn from(error: E) -> Self {
        let source = error.into();
        HandlerError { parks: DecodeError::causes(&*source), source }
    }
}

impl fmt::Debug for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HandlerError").field("parks", &self.parks).field("source", &self.source).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn by_question_mark(error: impl Into<Box<dyn Error + Send + Sync>>) -> HandlerError {
        let fails = || -> Result<(), HandlerError> { Err(error)? };
        fails().expect_err("an error")
    }

    #[test]
    fn only_a_payload_that_cannot_be_decoded_parks_by_itself() {
        let undecodable = || Message::new("t", "k", "no json").decode::<u64>().expect_err("no number");
        assert!(by_question_mark(undecodable()).parks);
        assert!(by_question_mark(std::io::Error::other(undecodable())).parks);
        assert!(!by_question_mark(std::io::Error::other("no stock")).parks);
        assert!(!by_question_mark("no stock").parks);
        assert!(!HandlerError::retry(undecodable()).parks);
        assert!(HandlerError::reject("no such order").parks);
    }
}
