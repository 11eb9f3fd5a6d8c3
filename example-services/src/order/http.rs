//! `POST /orders`, `GET /orders`, `GET /orders/{id}`.

use axum::Router;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::routing::get;
use chrono::{DateTime, Utc};
use message::Event;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::PgPool;
use uuid::Uuid;

use super::domain::{self, PlaceOrder};
use crate::events::OrderPlaced;
use crate::http::{Body, Json, Limit, Problem};

pub(super) fn routes() -> Router<PgPool> {
    Router::new().route("/orders", get(list).post(place)).route("/orders/{id}", get(show))
}

#[derive(Serialize)]
struct Placed {
    id: Uuid,
    /// The whole workflow's id: what `outbox trace` takes.
    #[serde(skip_serializing_if = "Option::is_none")]
    workflow: Option<Uuid>,
}

/// One transaction: the order, its lines, its history and the event, or nothing.
async fn place(
    State(pool): State<PgPool>,
    Body(wanted): Body<PlaceOrder>,
) -> Result<(StatusCode, Json<Placed>), Problem> {
    let faults = wanted.faults();
    if !faults.is_empty() {
        return Err(Problem::Invalid(faults));
    }
    let order = Uuid::now_v7();
    let request = serde_json::to_value(&wanted).map_err(Problem::internal)?;
    let mut tx = pool.begin().await.map_err(Problem::database)?;
    let inserted = sqlx::query(include_str!("place.sql"))
        .bind(order)
        .bind(&wanted.idempotency_key)
        .bind(&request)
        .bind(&wanted.customer)
        .bind(&wanted.destination)
        .execute(&mut *tx)
        .await
        .map_err(Problem::database)?;
    if inserted.rows_affected() == 0 {
        let (id, same): (Uuid, bool) = sqlx::query_as(include_str!("find_by_key.sql"))
            .bind(&wanted.idempotency_key)
            .bind(&request)
            .fetch_one(&mut *tx)
            .await
            .map_err(Problem::database)?;
        tx.rollback().await.map_err(Problem::database)?;
        return if same {
            Ok((StatusCode::OK, Json(Placed { id, workflow: None })))
        } else {
            Err(Problem::Conflict("idempotency_key belongs to another order"))
        };
    }
    let articles: Vec<&str> = wanted.lines.iter().map(|line| line.article.as_str()).collect();
    let quantities: Vec<i32> = wanted.lines.iter().map(|line| line.quantity).collect();
    sqlx::query(include_str!("place_lines.sql"))
        .bind(order)
        .bind(articles)
        .bind(quantities)
        .execute(&mut *tx)
        .await
        .map_err(Problem::database)?;
    let event = OrderPlaced {
        order,
        customer: wanted.customer,
        destination: wanted.destination,
        lines: wanted.lines,
    };
    let message = outbox::enqueue(&mut tx, &event).await.map_err(Problem::internal)?;
    sqlx::query(include_str!("remember.sql"))
        .bind(order)
        .bind(*message.as_uuid())
        .bind(OrderPlaced::KIND)
        .execute(&mut *tx)
        .await
        .map_err(Problem::database)?;
    outbox::commit(tx).await?;
    Ok((StatusCode::CREATED, Json(Placed { id: order, workflow: Some(message.into()) })))
}

#[derive(Serialize)]
struct Order {
    id: Uuid,
    customer: String,
    destination: String,
    state: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    amount_cents: Option<i64>,
    placed_at: DateTime<Utc>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lines: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    history: Option<Value>,
}

type Row = (Uuid, String, String, String, Option<String>, Option<i64>, DateTime<Utc>);
type RowWithParts =
    (Uuid, String, String, String, Option<String>, Option<i64>, DateTime<Utc>, Option<Value>, Option<Value>);

async fn show(State(pool): State<PgPool>, Path(id): Path<Uuid>) -> Result<Json<Order>, Problem> {
    let row: Option<RowWithParts> = sqlx::query_as(include_str!("find.sql"))
        .bind(id)
        .fetch_optional(&pool)
        .await
        .map_err(Problem::database)?;
    let (id, customer, destination, state, reason, amount_cents, placed_at, lines, history) =
        row.ok_or(Problem::NotFound("order"))?;
    Ok(Json(Order { id, customer, destination, state, reason, amount_cents, placed_at, lines, history }))
}

#[derive(Deserialize)]
struct Filter {
    state: Option<String>,
    #[serde(default)]
    limit: Limit,
}

#[derive(Serialize)]
struct Orders {
    orders: Vec<Order>,
}

async fn list(State(pool): State<PgPool>, Query(filter): Query<Filter>) -> Result<Json<Orders>, Problem> {
    if filter.state.as_deref().is_some_and(|state| domain::State::parse(state).is_none()) {
        return Err(Problem::invalid("state", "be placed, reserved, paid, completed or cancelled"));
    }
    let rows: Vec<Row> = sqlx::query_as(include_str!("list.sql"))
        .bind(filter.state)
        .bind(filter.limit.rows()?)
        .fetch_all(&pool)
        .await
        .map_err(Problem::database)?;
    let orders = rows
        .into_iter()
        .map(|(id, customer, destination, state, reason, amount_cents, placed_at)| Order {
            id,
            customer,
            destination,
            state,
            reason,
            amount_cents,
            placed_at,
            lines: None,
            history: None,
        })
        .collect();
    Ok(Json(Orders { orders }))
}
