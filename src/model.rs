//! State detection and prognosis: bundles, tract sessions, calibration, explanation.
