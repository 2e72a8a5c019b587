//! Plots as SVG, drawn here so that the page needs no plotting library: `?w=` is the width in CSS
//! pixels, `?theme=light|dark` chooses colours; the default ones do on either background. `?lang=zh`
//! labels them in Chinese.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;

use super::course::Stretch;
use super::guard::{Problem, problem};
use super::machine::Held;
use super::ring::ScorePoint;
use super::view::Trends;
use super::{App, Band};
use crate::types::{Name, Quality, Time};
use panel::{Axis, Dot, Panel, Shade, Span, Theme};
use words::Language;

mod panel;
mod words;

/// Signals drawn for one machine.
const MAX_PANELS: usize = 16;
/// The lowest p-value told apart in a plot.
const LEAST_P: f64 = 1e-12;

#[derive(Debug, Deserialize)]
pub struct Options {
    #[serde(default = "default_width")]
    w: u32,
    #[serde(default)]
    theme: Theme,
    #[serde(default)]
    lang: Language,
}

fn default_width() -> u32 {
    640
}

type Asked = Result<Query<Options>, QueryRejection>;

/// `/plot/machines/{id}/signals.svg`: a panel for each signal with its normal band, and with what was not
/// good shaded.
pub async fn signals(State(app): State<Arc<App>>, Path(id): Path<String>, asked: Asked) -> Result<Response, Problem> {
    let Some(trends) = app.state.view.trends(&id) else { return unknown() };
    let bands = (app.state.bands)(&id);
    drawn(&app, asked, move || signal_panels(&trends, &bands)).await
}

/// `/plot/machines/{id}/score.svg`: the score, and how unlikely it is, with the limit.
pub async fn score(State(app): State<Arc<App>>, Path(id): Path<String>, asked: Asked) -> Result<Response, Problem> {
    let Some(trends) = app.state.view.trends(&id) else { return unknown() };
    drawn(&app, asked, move || score_panels(&trends.scores, trends.held)).await
}

/// `/plot/machines/{id}/health.svg`: health, and useful life with its interval, since it is watched.
pub async fn health(State(app): State<Arc<App>>, Path(id): Path<String>, asked: Asked) -> Result<Response, Problem> {
    let Some(trends) = app.state.view.trends(&id) else { return unknown() };
    drawn(&app, asked, move || health_panels(&trends.course)).await
}

/// `/plot/buffer.svg`: the data path over the last ten minutes.
pub async fn buffer(State(app): State<Arc<App>>, asked: Asked) -> Result<Response, Problem> {
    let samples = app.samples.to_vec();
    let line = |title: &str, value: fn(&super::sampler::Sample) -> f64| {
        let dots = samples.iter().map(|s| Dot { at: s.at, value: Some(value(s)) }).collect();
        Panel { axis: Axis::FromZero, ..Panel::of(title, dots) }
    };
    let panels = vec![
        line("records waiting", |s| s.waiting),
        line("readings per second", |s| s.readings_rate),
        line("records sent per second", |s| s.forwarded_rate),
    ];
    drawn(&app, asked, move || panels).await
}

fn unknown() -> Result<Response, Problem> {
    problem(StatusCode::NOT_FOUND, "no such machine has been heard")
}

async fn drawn(
    app: &App,
    asked: Asked,
    panels: impl FnOnce() -> Vec<Panel> + Send + 'static,
) -> Result<Response, Problem> {
    let Query(options) = asked.map_err(|e| Problem(StatusCode::BAD_REQUEST, e.body_text()))?;
    let failed = |e: String| Problem(StatusCode::INTERNAL_SERVER_ERROR, format!("the plot could not be drawn: {e}"));
    let _turn = app.plotting.acquire().await.map_err(|e| failed(e.to_string()))?;
    let work = move || panel::draw(&panels(), options.w, options.theme, options.lang);
    let svg = tokio::task::spawn_blocking(work).await.map_err(|e| failed(e.to_string()))?.map_err(failed)?;
    Ok(([(header::CONTENT_TYPE, "image/svg+xml")], svg).into_response())
}

fn signal_panels(trends: &Trends, bands: &BTreeMap<Name, Band>) -> Vec<Panel> {
    let panel = |(name, points): &(Name, Vec<super::ring::Point>)| {
        let dots: Vec<Dot> = points.iter().map(|p| Dot { at: p.at, value: p.value }).collect();
        let shades = shaded(points, |p| p.at, |p| (p.quality != Quality::Good).then_some(p.quality));
        let note = points.last().filter(|p| p.quality != Quality::Good).map(|p| p.quality.as_str().to_owned());
        let normal = bands.get(name).and_then(|b| b.normal);
        Panel { shades, note, normal, ..Panel::of(name, dots) }
    };
    let mut panels: Vec<Panel> = trends.signals.iter().take(MAX_PANELS).map(panel).collect();
    if trends.signals.len() > MAX_PANELS
        && let Some(last) = panels.last_mut()
    {
        last.note = Some(format!("+ {}", trends.signals.len() - MAX_PANELS));
    }
    panels
}

/// Stretches to mark: those next to each other and alike are one.
fn shaded<T>(items: &[T], at: fn(&T) -> Time, mark: fn(&T) -> Option<Quality>) -> Vec<Shade> {
    let mut shades: Vec<Shade> = Vec::new();
    for (i, item) in items.iter().enumerate() {
        let Some(quality) = mark(item) else { continue };
        let (from, until) = (at(item), items.get(i + 1).map_or(at(item), at));
        match shades.last_mut() {
            Some(last) if last.until == from && last.quality == quality => last.until = until,
            _ => shades.push(Shade { from, until, quality }),
        }
    }
    shades
}

fn score_panels(scores: &[ScorePoint], held: Held) -> Vec<Panel> {
    let dots = |value: &dyn Fn(&ScorePoint) -> Option<f64>| -> Vec<Dot> {
        scores.iter().map(|s| Dot { at: s.at, value: value(s) }).collect()
    };
    let shades = shaded(scores, |s| s.at, |s| s.anomaly.then_some(Quality::Bad));
    let mut score = Panel { shades: shades.clone(), ..Panel::of("anomaly score", dots(&|s| s.score)) };
    if held == Held::Score {
        score.limit = Some(dots(&|s| Some(s.threshold)));
    }
    if held == Held::Score || scores.iter().all(|s| s.p_value.is_none()) {
        return vec![Panel { tall: true, ..score }];
    }
    let surprise = |p: f64| -p.max(LEAST_P).log10();
    let rarity = Panel {
        shades,
        limit: Some(dots(&|s| Some(surprise(s.threshold)))),
        axis: Axis::Rarity,
        tall: true,
        ..Panel::of("p-value", dots(&|s| s.p_value.map(surprise)))
    };
    vec![rarity, score]
}

/// Only what the model speaks of.
fn health_panels(course: &[Stretch]) -> Vec<Panel> {
    let line = |value: &dyn Fn(&Stretch) -> Option<f64>| -> Vec<Dot> {
        course.iter().map(|s| Dot { at: s.at, value: value(s) }).collect()
    };
    let mut panels = Vec::new();
    if course.iter().any(|s| s.health.is_some()) {
        panels.push(Panel { axis: Axis::Share, tall: true, ..Panel::of("health", line(&|s| s.health)) });
    }
    if course.iter().any(|s| s.rul.is_some()) {
        let band = course.iter().filter_map(|s| s.rul.map(|[low, _, high]| Span { at: s.at, low, high })).collect();
        let median = line(&|s| s.rul.map(|[_, median, _]| median));
        panels.push(Panel { axis: Axis::FromZero, tall: true, band, ..Panel::of("useful life left", median) });
    }
    panels
}

#[cfg(test)]
mod tests;
