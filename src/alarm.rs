//! Advisory generation: the alarm state machine. Pure.
