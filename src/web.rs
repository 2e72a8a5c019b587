//! The local window: dashboard, JSON API, metrics, health.
