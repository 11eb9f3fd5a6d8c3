//! `GET /payments`, `GET /payments/{order}`, `GET /accounts`.

use axum::Router;
use axum::extract::{Path, Query, State};
use axum::routing::get;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use uuid::Uuid;

use crate::http::{Json, Limit, Problem};

pub(super) fn routes() -> Router<PgPool> {
    Router::new()
        .route("/payments", get(list))
        .route("/payments/{order}", get(show))
        .route("/accounts", get(accounts))
}

#[derive(Serialize)]
struct Payment {
    order: Uuid,
    customer: String,
    amount_cents: i64,
    state: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    decided_at: DateTime<Utc>,
}

type Row = (Uuid, String, i64, String, Option<String>, DateTime<Utc>);

fn payment((order, customer, amount_cents, state, reason, decided_at): Row) -> Payment {
    Payment { order, customer, amount_cents, state, reason, decided_at }
}

async fn show(State(pool): State<PgPool>, Path(order): Path<Uuid>) -> Result<Json<Payment>, Problem> {
    let row: Option<Row> = sqlx::query_as(include_str!("find.sql"))
        .bind(order)
        .fetch_optional(&pool)
        .await
        .map_err(Problem::database)?;
    row.map(payment).map(Json).ok_or(Problem::NotFound("payment"))
}

#[derive(Deserialize)]
struct Filter {
    customer: Option<String>,
    #[serde(default)]
    limit: Limit,
}

#[derive(Serialize)]
struct Payments {
    payments: Vec<Payment>,
}

async fn list(State(pool): State<PgPool>, Query(filter): Query<Filter>) -> Result<Json<Payments>, Problem> {
    let rows: Vec<Row> = sqlx::query_as(include_str!("list.sql"))
        .bind(filter.customer)
        .bind(filter.limit.rows()?)
        .fetch_all(&pool)
        .await
        .map_err(Problem::database)?;
    Ok(Json(Payments { payments: rows.into_iter().map(payment).collect() }))
}

#[derive(Serialize)]
struct Account {
    customer: String,
    limit_cents: i64,
    balance_cents: i64,
}

#[derive(Serialize)]
struct Accounts {
    accounts: Vec<Account>,
}

async fn accounts(State(pool): State<PgPool>) -> Result<Json<Accounts>, Problem> {
    let rows: Vec<(String, i64, i64)> =
        sqlx::query_as(include_str!("accounts.sql")).fetch_all(&pool).await.map_err(Problem::database)?;
    let accounts = rows
        .into_iter()
        .map(|(customer, limit_cents, balance_cents)| Account { customer, limit_cents, balance_cents })
        .collect();
    Ok(Json(Accounts { accounts }))
}
