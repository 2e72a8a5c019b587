//! Telling systemd how we are.
