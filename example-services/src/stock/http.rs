//! `GET /stock`, `GET /reservations/{order}`.

use axum::Router;
use axum::extract::{Path, State};
use axum::routing::get;
use serde::Serialize;
use serde_json::Value;
use sqlx::PgPool;
use uuid::Uuid;

use crate::http::{Json, Problem};

pub(super) fn routes() -> Router<PgPool> {
    Router::new().route("/stock", get(levels)).route("/reservations/{order}", get(show))
}

#[derive(Serialize)]
struct Level {
    code: String,
    name: String,
    price_cents: i64,
    on_hand: i32,
    reserved: i32,
    free: i32,
}

#[derive(Serialize)]
struct Levels {
    articles: Vec<Level>,
}

async fn levels(State(pool): State<PgPool>) -> Result<Json<Levels>, Problem> {
    let rows: Vec<(String, String, i64, i32, i32, i32)> =
        sqlx::query_as(include_str!("levels.sql")).fetch_all(&pool).await.map_err(Problem::database)?;
    let articles = rows
        .into_iter()
        .map(|(code, name, price_cents, on_hand, reserved, free)| Level {
            code,
            name,
            price_cents,
            on_hand,
            reserved,
            free,
        })
        .collect();
    Ok(Json(Levels { articles }))
}

#[derive(Serialize)]
struct Reservation {
    order: Uuid,
    state: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    lines: Value,
}

async fn show(State(pool): State<PgPool>, Path(order): Path<Uuid>) -> Result<Json<Reservation>, Problem> {
    let row: Option<(Uuid, String, Option<String>, Option<Value>)> = sqlx::query_as(include_str!("find.sql"))
        .bind(order)
        .fetch_optional(&pool)
        .await
        .map_err(Problem::database)?;
    let (order, state, reason, lines) = row.ok_or(Problem::NotFound("reservation"))?;
    Ok(Json(Reservation { order, state, reason, lines: lines.unwrap_or_else(|| Value::Array(Vec::new())) }))
}
