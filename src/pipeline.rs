//! Data manipulation: quality gates, alignment to a grid, windows. Pure; the clock is passed in.
