//! Small multiples: panels one above the other on one time axis, drawn by plotters.

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use serde::Deserialize;

use super::words::Language;
use crate::types::{Quality, Time};

/// Drawn at this scale and shown at 1: plotters works in whole pixels.
const SCALE: i32 = 2;
const WIDTHS: std::ops::RangeInclusive<u32> = 240..=1600;
const PANEL_HEIGHT: i32 = 84;
const TALL_HEIGHT: i32 = 130;
const AXIS_HEIGHT: i32 = 20;
const LEFT: i32 = 64;
const RIGHT: i32 = 10;
const TITLE: i32 = 20;
/// Longer names are shortened: text is not measured here.
const MAX_TITLE_CHARS: usize = 40;
/// Larger values are drawn as if they were this large.
const MOST: f64 = 1e100;

/// Counts and rates are never drawn on a finer scale than this.
const LEAST_COUNT: f64 = 2.0;

/// Which background the plot stands on.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Theme {
    /// Readable on either.
    #[default]
    Auto,
    /// On white.
    Light,
    /// On black.
    Dark,
}

struct Colours {
    text: RGBColor,
    grid: RGBColor,
    line: RGBColor,
    limit: RGBColor,
    warn: RGBColor,
    normal: RGBColor,
}

impl Theme {
    fn colours(self) -> Colours {
        let rgb = |hex: u32| RGBColor((hex >> 16) as u8, (hex >> 8) as u8, hex as u8);
        let [text, grid, line, limit, warn, normal] = match self {
            Theme::Auto => [0x7d828c, 0x8a8f99, 0x3b82f6, 0xe5484d, 0xd98b0b, 0x2f9e69],
            Theme::Light => [0x4d545f, 0xb9bec7, 0x1d5fd0, 0xc62a2f, 0xc27803, 0x18794e],
            Theme::Dark => [0xa8b0bc, 0x4a515c, 0x6ea8fe, 0xff6369, 0xf5a524, 0x5fd89b],
        }
        .map(rgb);
        Colours { text, grid, line, limit, warn, normal }
    }
}

/// A value at a time; no value is a gap.
#[derive(Copy, Clone, Debug)]
pub struct Dot {
    pub at: Time,
    pub value: Option<f64>,
}

/// An interval at a time.
#[derive(Copy, Clone, Debug, PartialEq)]
pub struct Span {
    pub at: Time,
    pub low: f64,
    pub high: f64,
}

/// A stretch of time that is marked.
#[derive(Copy, Clone, Debug, PartialEq)]
pub struct Shade {
    pub from: Time,
    pub until: Time,
    pub quality: Quality,
}

/// How the values are laid out and labelled.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Axis {
    /// From the least to the greatest.
    Fit,
    /// From zero.
    FromZero,
    /// 0 to 1, in percent.
    Share,
    /// Powers of ten, as "1 in 1000".
    Rarity,
}

/// One plot of the stack.
#[derive(Clone, Debug)]
pub struct Panel {
    pub title: String,
    pub note: Option<String>,
    pub line: Vec<Dot>,
    pub limit: Option<Vec<Dot>>,
    /// Drawn behind the line.
    pub band: Vec<Span>,
    /// Where it is while all is well: drawn behind everything, always in sight.
    pub normal: Option<[f64; 2]>,
    pub shades: Vec<Shade>,
    pub axis: Axis,
    pub tall: bool,
}

impl Panel {
    /// A line with its title and nothing else.
    pub fn of(title: &str, line: Vec<Dot>) -> Panel {
        let (shades, band) = (Vec::new(), Vec::new());
        let (note, limit, normal, axis) = (None, None, None, Axis::Fit);
        Panel { title: tidy(title), note, line, limit, band, normal, shades, axis, tall: false }
    }

    fn height(&self) -> i32 {
        if self.tall { TALL_HEIGHT } else { PANEL_HEIGHT }
    }
}

/// Characters that XML forbids would break the whole image.
fn tidy(name: &str) -> String {
    let clean = |c: char| if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') { '\u{fffd}' } else { c };
    let mut out: String = name.chars().take(MAX_TITLE_CHARS).map(clean).collect();
    if name.chars().nth(MAX_TITLE_CHARS).is_some() {
        out.push('…');
    }
    out
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Draws the stack as one SVG, `width` CSS pixels wide.
pub fn draw(panels: &[Panel], width: u32, theme: Theme, language: Language) -> Result<String, String> {
    let width = width.clamp(*WIDTHS.start(), *WIDTHS.end());
    let height = panels.iter().map(Panel::height).sum::<i32>().max(TITLE) + AXIS_HEIGHT;
    let (colours, span) = (theme.colours(), Extent::of(panels));
    let mut svg = String::new();
    {
        let size = (width * SCALE as u32, (height * SCALE) as u32);
        let mut rest = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        for panel in panels {
            let (this, below) = rest.split_vertically(panel.height() * SCALE);
            draw_panel(&this, panel, &span, &colours, language).map_err(|e| e.to_string())?;
            rest = below;
        }
        draw_time(&rest, &span, &colours, language).map_err(|e| e.to_string())?;
        rest.present().map_err(|e| e.to_string())?;
    }
    // The natural size in CSS pixels, while the view box keeps the finer grid.
    let (from, to) = (
        format!("width=\"{}\" height=\"{}\"", width * 2, height * 2),
        format!("width=\"{width}\" height=\"{height}\""),
    );
    Ok(svg.replacen(&from, &to, 1))
}

/// The time shown, in seconds before its end.
struct Extent {
    end: Time,
    seconds: f64,
}

impl Extent {
    fn of(panels: &[Panel]) -> Extent {
        let times = || panels.iter().flat_map(|p| p.line.iter()).map(|d| d.at);
        let end = times().max().unwrap_or_default();
        let start = times().min().unwrap_or(end);
        Extent { end, seconds: end.since(start).as_secs_f64().max(10.0) }
    }

    fn x(&self, at: Time) -> f64 {
        -self.end.since(at).as_secs_f64()
    }
}

type Failed = DrawingAreaErrorKind<std::io::Error>;

fn draw_panel(
    area: &Area<'_>,
    panel: &Panel,
    span: &Extent,
    colours: &Colours,
    language: Language,
) -> Result<(), Failed> {
    let scale = Scale::of(panel, language);
    let mut chart = ChartBuilder::on(area)
        .margin_top(TITLE * SCALE)
        .margin_bottom(8 * SCALE)
        .margin_right(RIGHT * SCALE)
        .set_label_area_size(LabelAreaPosition::Left, LEFT * SCALE)
        .build_cartesian_2d(-span.seconds..0.0, 0.0..1.0)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .disable_x_axis()
        .y_labels(3)
        .y_label_formatter(&|at| scale.label(*at))
        .label_style(text(11, &colours.text))
        .axis_style(colours.grid.mix(0.0))
        .bold_line_style(colours.grid.mix(0.5).stroke_width(1))
        .light_line_style(colours.grid.mix(0.0))
        .draw()?;
    if let Some([low, high]) = panel.normal {
        let corners = [(-span.seconds, scale.y(low)), (0.0, scale.y(high))];
        chart.draw_series([Rectangle::new(corners, colours.normal.mix(0.16).filled())])?;
    }
    for shade in &panel.shades {
        let colour = match shade.quality {
            Quality::Bad => colours.limit.mix(0.22),
            Quality::Uncertain => colours.warn.mix(0.22),
            Quality::Stale | Quality::Good => colours.grid.mix(0.35),
        };
        let corners = [(span.x(shade.from), 0.0), (span.x(shade.until), 1.0)];
        chart.draw_series([Rectangle::new(corners, colour.filled())])?;
    }
    if panel.band.len() > 1 {
        let edge = |value: fn(&Span) -> f64| panel.band.iter().map(move |s| (span.x(s.at), value(s)));
        let corners = edge(|s| s.low).chain(edge(|s| s.high).rev()).map(|(x, v)| (x, scale.y(v)));
        chart.draw_series([Polygon::new(corners.collect::<Vec<_>>(), colours.line.mix(0.2).filled())])?;
    }
    let stroke = colours.line.stroke_width(3);
    for run in runs(&panel.line, span, &scale) {
        if let [alone] = run.as_slice() {
            chart.draw_series([Circle::new(*alone, 3, colours.line.filled())])?;
        } else {
            chart.draw_series(LineSeries::new(run, stroke))?;
        }
    }
    for run in panel.limit.iter().flat_map(|l| runs(l, span, &scale)) {
        chart.draw_series(DashedLineSeries::new(run, 10, 7, colours.limit.stroke_width(3)))?;
    }
    draw_titles(area, panel, &scale, colours)
}

fn draw_titles(area: &Area<'_>, panel: &Panel, scale: &Scale, colours: &Colours) -> Result<(), Failed> {
    let width = area.dim_in_pixel().0 as i32;
    let middle = TITLE * SCALE / 2;
    let title = scale.language.say(&panel.title).to_owned();
    area.draw(&Text::new(title, (LEFT * SCALE, middle), text_at(13, &colours.text, HPos::Left)))?;
    let last = panel.line.iter().rev().find_map(|d| d.value).map(|v| scale.value(v));
    let ends = panel.band.last().map(|s| format!("{} … {}", scale.value(s.low), scale.value(s.high)));
    let note = panel.note.as_deref().map(|n| scale.language.say(n).to_owned());
    let words: Vec<String> = [last, ends, note].into_iter().flatten().collect();
    let style = text_at(13, &colours.line, HPos::Right);
    area.draw(&Text::new(words.join(" · "), (width - RIGHT * SCALE, middle), style))
}

fn draw_time(area: &Area<'_>, span: &Extent, colours: &Colours, language: Language) -> Result<(), Failed> {
    let width = area.dim_in_pixel().0 as i32;
    let (left, right) = (LEFT * SCALE, width - RIGHT * SCALE);
    let y = AXIS_HEIGHT * SCALE / 2;
    let ago = |seconds: f64| language.ago(seconds);
    let labels = [(left, ago(span.seconds), HPos::Left), ((left + right) / 2, ago(span.seconds / 2.0), HPos::Center)];
    for (x, label, anchor) in labels {
        area.draw(&Text::new(label, (x, y), text_at(11, &colours.text, anchor)))?;
    }
    let end = jiff::Timestamp::from_nanosecond(i128::from(span.end.0)).unwrap_or_default();
    let clock = if span.end == Time::default() { String::new() } else { end.strftime("%H:%M:%S UTC").to_string() };
    area.draw(&Text::new(clock, (right, y), text_at(11, &colours.text, HPos::Right)))
}

fn text(size: i32, colour: &RGBColor) -> TextStyle<'static> {
    // plotters divides SVG font sizes by 1.24 to match its bitmap fonts.
    ("system-ui, sans-serif", f64::from(size * SCALE) * 1.24).into_font().color(colour)
}

fn text_at(size: i32, colour: &RGBColor, anchor: HPos) -> TextStyle<'static> {
    text(size, colour).pos(Pos::new(anchor, VPos::Center))
}

/// Unbroken stretches of the line. It breaks where there is no value, and where time jumps by more
/// than three usual steps.
fn runs(dots: &[Dot], span: &Extent, scale: &Scale) -> Vec<Vec<(f64, f64)>> {
    let mut steps: Vec<i64> = dots.windows(2).map(|w| w[1].at.since(w[0].at).as_nanos() as i64).collect();
    steps.sort_unstable();
    let usual = steps.get(steps.len() / 2).copied().unwrap_or(0);
    let mut runs: Vec<Vec<(f64, f64)>> = Vec::new();
    let mut before: Option<Time> = None;
    for dot in dots {
        let Some(value) = dot.value else {
            before = None;
            continue;
        };
        let here = (span.x(dot.at), scale.y(value));
        let joined = before.is_some_and(|b| dot.at.since(b).as_nanos() as i64 <= usual.saturating_mul(3));
        match runs.last_mut().filter(|_| joined) {
            Some(run) => run.push(here),
            None => runs.push(vec![here]),
        }
        before = Some(dot.at);
    }
    runs
}

/// Maps values to 0..1 with round numbers at both ends and in the middle.
struct Scale {
    low: f64,
    high: f64,
    axis: Axis,
    language: Language,
}

impl Scale {
    fn of(panel: &Panel, language: Language) -> Scale {
        let all = panel.line.iter().chain(panel.limit.iter().flatten()).filter_map(|d| d.value);
        let all = all.chain(panel.band.iter().flat_map(|s| [s.low, s.high])).chain(panel.normal.into_iter().flatten());
        let (mut low, mut high) =
            all.map(|v| v.clamp(-MOST, MOST)).fold((f64::MAX, f64::MIN), |(l, h), v| (l.min(v), h.max(v)));
        if low > high {
            (low, high) = (0.0, 1.0);
        }
        let (low, high) = match panel.axis {
            // An even number of powers of ten has a whole one in the middle.
            Axis::Rarity => (0.0, ((high / 2.0).ceil() * 2.0).clamp(2.0, 12.0)),
            Axis::FromZero => round_out(0.0, high.max(LEAST_COUNT)),
            Axis::Share => (0.0, 1.0),
            Axis::Fit => round_out(low, high),
        };
        Scale { low, high, axis: panel.axis, language }
    }

    fn y(&self, value: f64) -> f64 {
        ((value.clamp(-MOST, MOST) - self.low) / (self.high - self.low)).clamp(0.0, 1.0)
    }

    fn label(&self, at: f64) -> String {
        self.value(self.low + at * (self.high - self.low))
    }

    fn value(&self, value: f64) -> String {
        match self.axis {
            Axis::Rarity => self.language.rarity(value),
            Axis::Share => format!("{:.0} %", value * 100.0),
            Axis::Fit | Axis::FromZero => short(value),
        }
    }
}

/// The least range with ends that are whole multiples of half its size, from 1, 2, 3, 4, 5, 6, 8 × 10ⁿ.
fn round_out(low: f64, high: f64) -> (f64, f64) {
    let size = (high - low).max(low.abs().max(high.abs()) * 1e-6).max(1e-9);
    let mut power = 10f64.powf((size / 2.0).log10().floor());
    for _ in 0..3 {
        for digit in [1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0] {
            let half = digit * power;
            let start = (low / half).floor() * half;
            if start + 2.0 * half >= high && half > 0.0 {
                return (start, start + 2.0 * half);
            }
        }
        power *= 10.0;
    }
    (low - size, high + size)
}

/// A number with about four digits.
fn short(value: f64) -> String {
    let size = value.abs();
    match size {
        s if s < 1e-9 => "0".into(),
        s if !(1e-3..1e6).contains(&s) => format!("{value:.2e}"),
        s => {
            let digits = (3 - s.log10().floor() as i32).clamp(0, 6) as usize;
            let text = format!("{value:.digits$}");
            if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn ranges_hold_their_values_whatever_they_are(a in -1e300f64..1e300, b in prop_oneof![-1e300f64..1e300, -1.0..1.0]) {
            let (a, b) = (a.clamp(-MOST, MOST), b.clamp(-MOST, MOST));
            let (low, high) = round_out(a.min(b), a.max(b));
            prop_assert!(low < high && (high - low).is_finite());
            let slack = (high - low) * 1e-9;
            prop_assert!(low <= a.min(b) + slack && a.max(b) <= high + slack, "{low} {high}");
        }
    }

    #[test]
    fn ranges_are_round_and_numbers_short() {
        assert_eq!(round_out(0.0, 97.0), (0.0, 100.0));
        assert_eq!([round_out(21.3, 22.4).0, round_out(21.3, 22.4).1].map(short), ["20.8", "22.4"]);
        assert_eq!(round_out(0.0, 0.0).0, 0.0);
        let shown: Vec<String> = [0.0, 0.1, 23.4567, 1500.0, 123456.7, 2.5e7, -0.00012].map(short).into();
        assert_eq!(shown, ["0", "0.1", "23.46", "1500", "123457", "2.50e7", "-1.20e-4"]);
    }

    #[test]
    fn lines_break_at_gaps_in_value_and_in_time() {
        let dot = |s: i64, value| Dot { at: Time(s * 1_000_000_000), value };
        let dots = [
            dot(0, Some(1.0)),
            dot(1, Some(2.0)),
            dot(2, None),
            dot(3, Some(1.0)),
            dot(4, Some(1.0)),
            dot(9, Some(0.0)),
        ];
        let panel = Panel::of("x", dots.to_vec());
        let lengths: Vec<usize> =
            runs(&dots, &Extent::of(std::slice::from_ref(&panel)), &Scale::of(&panel, Language::En))
                .iter()
                .map(Vec::len)
                .collect();
        assert_eq!(lengths, [2, 2, 1]);
    }
}
