//! Where logs go.
