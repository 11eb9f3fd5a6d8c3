//! What the four HTTP services share: typed JSON errors, a body that is checked, and the routes that tell how a service is.

use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Router, body::Bytes};
use inbox::Ready;
use message::sqlstate;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sqlx::PgPool;

use crate::counts::Counts;

pub use axum::Json;

/// A field of a request that is not as it must be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// The field, with its place: `lines[2].quantity`.
    pub field: String,
    /// What it must do: `be 1 to 1000`.
    pub must: &'static str,
}

/// Why a request is not answered as asked. The answer is JSON: `{"error": …, "message": …, "fields": […]}`; it never
/// carries SQL, an address or a value of the request.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// 400: the body is not the JSON that this route takes.
    #[error("the body is not valid JSON for this route (line {line}, column {column})")]
    Malformed {
        /// Where it departs.
        line: usize,
        /// Where it departs.
        column: usize,
    },
    /// 413: the body is too long.
    #[error("the body is longer than 64 KiB or could not be read")]
    TooLarge,
    /// 422: the caller's; each field at fault is named.
    #[error("some fields are not valid")]
    Invalid(Vec<Fault>),
    /// 404
    #[error("no such {0}")]
    NotFound(&'static str),
    /// 409
    #[error("{0}")]
    Conflict(&'static str),
    /// 503: nothing happened; try again.
    #[error("not now, nothing was changed: try again")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// 503: whether it happened is unknown; the same request again tells.
    #[error("whether it was done is unknown: send the same request again, with the same idempotency_key")]
    Unknown(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// 500: ours.
    #[error("something is wrong with the service")]
    Internal(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl Problem {
    /// One field at fault.
    pub fn invalid(field: &str, must: &'static str) -> Problem {
        Problem::Invalid(vec![Fault { field: field.to_owned(), must }])
    }

    /// The database failed before anything was committed.
    pub fn database(error: sqlx::Error) -> Problem {
        let code = error.as_database_error().and_then(|error| error.code());
        match (code.map(|code| sqlstate::fault(&code)), &error) {
            (Some(sqlstate::Fault::Contention | sqlstate::Fault::Outage), _)
            | (None, sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed) => {
                Problem::Unavailable(Box::new(error))
            }
            _ => Problem::Internal(Box::new(error)),
        }
    }

    /// Our own fault.
    pub fn internal(error: impl std::error::Error + Send + Sync + 'static) -> Problem {
        Problem::Internal(Box::new(error))
    }

    fn status(&self) -> (StatusCode, &'static str) {
        match self {
            Problem::Malformed { .. } => (StatusCode::BAD_REQUEST, "malformed"),
            Problem::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "too_large"),
            Problem::Invalid(_) => (StatusCode::UNPROCESSABLE_ENTITY, "invalid"),
            Problem::NotFound(_) => (StatusCode::NOT_FOUND, "not_found"),
            Problem::Conflict(_) => (StatusCode::CONFLICT, "conflict"),
            Problem::Unavailable(_) => (StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
            Problem::Unknown(_) => (StatusCode::SERVICE_UNAVAILABLE, "outcome_unknown"),
            Problem::Internal(_) => (StatusCode::INTERNAL_SERVER_ERROR, "internal"),
        }
    }
}

impl From<outbox::CommitError> for Problem {
    fn from(error: outbox::CommitError) -> Problem {
        match error {
            outbox::CommitError::NotCommitted(_) => Problem::Unavailable(Box::new(error)),
            _ => Problem::Unknown(Box::new(error)),
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let (status, error) = self.status();
        if let Problem::Unavailable(source) | Problem::Unknown(source) | Problem::Internal(source) = &self {
            // The chain, not its Debug, which of a database error would show the row.
            tracing::warn!(error, cause = message::error_chain(&**source), "a request failed");
        }
        let mut body = serde_json::json!({ "error": error, "message": self.to_string() });
        if let Problem::Invalid(fields) = &self {
            body["fields"] = serde_json::json!(fields);
        }
        (status, Json(body)).into_response()
    }
}

/// A JSON body, whatever its content type says; refused with [`Problem::Malformed`].
pub struct Body<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let bytes =
            Bytes::from_request(request, state).await.map_err(|_: BytesRejection| Problem::TooLarge)?;
        serde_json::from_slice(&bytes)
            .map(Body)
            .map_err(|error| Problem::Malformed { line: error.line(), column: error.column() })
    }
}

/// How many rows of a list: 1 to 1000, 100 if not said.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct Limit(i64);

impl Default for Limit {
    fn default() -> Self {
        Limit(100)
    }
}

impl Limit {
    /// # Errors
    /// It is out of its range.
    pub fn rows(self) -> Result<i64, Problem> {
        if (1..=1000).contains(&self.0) { Ok(self.0) } else { Err(Problem::invalid("limit", "be 1 to 1000")) }
    }
}

/// `/health/live`: the process answers. `/health/ready`: it can do its work, and no process of its consumer drops a kind
/// that it handles.
pub fn health(pool: PgPool, consumer: Ready) -> Router {
    async fn ready(
        State((pool, consumer)): State<(PgPool, Ready)>,
    ) -> Result<Json<serde_json::Value>, Problem> {
        if !consumer.is_ready() {
            return Err(Problem::Unavailable("the consumer is not ready".into()));
        }
        // Whoever is given a connection knows that it answers: a new one, or one that was asked.
        pool.acquire().await.map_err(Problem::database)?;
        Ok(Json(serde_json::json!({ "ready": true })))
    }
    Router::new()
        .route("/health/live", get(|| async { Json(serde_json::json!({ "live": true })) }))
        .route("/health/ready", get(ready))
        .with_state((pool, consumer))
}

/// `/stats`: messages since the start, by what became of them.
pub fn stats(counts: Counts) -> Router {
    Router::new()
        .route("/stats", get(|State(counts): State<Counts>| async move { Json(counts.now()) }))
        .with_state(counts)
}
