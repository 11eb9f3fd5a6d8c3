//! `GET /shipments`, `GET /shipments/{order}`.

use axum::Router;
use axum::extract::{Path, Query, State};
use axum::routing::get;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use uuid::Uuid;

use crate::http::{Json, Limit, Problem};

pub(super) fn routes() -> Router<PgPool> {
    Router::new().route("/shipments", get(list)).route("/shipments/{order}", get(show))
}

#[derive(Serialize)]
struct Shipment {
    order: Uuid,
    destination: String,
    state: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    tracking: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    decided_at: DateTime<Utc>,
}

type Row = (Uuid, String, String, Option<i64>, Option<String>, DateTime<Utc>);

fn shipment((order, destination, state, tracking, reason, decided_at): Row) -> Shipment {
    Shipment { order, destination, state, tracking, reason, decided_at }
}

async fn show(State(pool): State<PgPool>, Path(order): Path<Uuid>) -> Result<Json<Shipment>, Problem> {
    let row: Option<Row> = sqlx::query_as(include_str!("find.sql"))
        .bind(order)
        .fetch_optional(&pool)
        .await
        .map_err(Problem::database)?;
    row.map(shipment).map(Json).ok_or(Problem::NotFound("shipment"))
}

#[derive(Deserialize)]
struct Filter {
    state: Option<String>,
    #[serde(default)]
    limit: Limit,
}

#[derive(Serialize)]
struct Shipments {
    shipments: Vec<Shipment>,
}

async fn list(State(pool): State<PgPool>, Query(filter): Query<Filter>) -> Result<Json<Shipments>, Problem> {
    if filter.state.as_deref().is_some_and(|state| !matches!(state, "dispatched" | "refused")) {
        return Err(Problem::invalid("state", "be dispatched or refused"));
    }
    let rows: Vec<Row> = sqlx::query_as(include_str!("list.sql"))
        .bind(filter.state)
        .bind(filter.limit.rows()?)
        .fetch_all(&pool)
        .await
        .map_err(Problem::database)?;
    Ok(Json(Shipments { shipments: rows.into_iter().map(shipment).collect() }))
}
