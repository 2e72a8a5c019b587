//! Results for MQTT dashboards.
