//! The whole configuration: one field per stage.
