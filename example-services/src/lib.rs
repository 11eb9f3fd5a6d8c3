//! Four services that sell, charge, keep and send goods: [`order`], [`payment`], [`stock`] and [`shipping`]. Each is a
//! process with a database of its own; they talk only through [`events`].
//!
//! Read one of them first, `stock` say: `mod.rs` says what it reacts to, `domain.rs` holds the rules, `handlers.rs` turns
//! an event into rows and the next events in one transaction, `http.rs` is for people, and the SQL stands beside.
//! [`service`] is what they share to start and stop. [`demo`] runs all of them and shows what happens when one is killed.

pub mod broker;
pub mod counts;
pub mod demo;
pub mod events;
pub mod http;
pub mod order;
pub mod payment;
pub mod service;
pub mod shipping;
pub mod stock;
