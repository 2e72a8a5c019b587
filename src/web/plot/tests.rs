//! What plots show where data is bad, missing or absurd, and where names are odd.

use super::*;
use crate::types::Name;
use crate::web::ring::Point;

fn at(second: i64) -> Time {
    Time(1_795_000_000_000_000_000 + second * 1_000_000_000)
}

fn trends(name: &str) -> Trends {
    let quality = |s| if (20..30).contains(&s) { Quality::Stale } else { Quality::Good };
    let value = |s: i64| (!(22..28).contains(&s)).then_some(20.0 + (s as f64 / 7.0).sin());
    let points = (0..60).map(|s| Point { at: at(s), value: value(s), quality: quality(s) }).collect();
    let scores = (0..60)
        .map(|s| ScorePoint {
            at: at(s),
            score: Some(s as f64 / 60.0),
            p_value: Some(10f64.powf(-s as f64 / 15.0)),
            threshold: 0.001,
            anomaly: s >= 45,
        })
        .collect();
    Trends { signals: vec![(Name::from(name), points)], scores, held: Held::PValue, course: Vec::new() }
}

#[test]
fn a_stretch_without_good_values_is_one_shade_and_breaks_the_line() {
    let panels = signal_panels(&trends("temp"), &BTreeMap::new());
    assert_eq!(panels[0].shades, [Shade { from: at(20), until: at(30), quality: Quality::Stale }]);
    let svg = panel::draw(&panels, 640, Theme::Light, Language::En).unwrap();
    assert_eq!(svg.matches("<polyline").count(), 2, "two runs: {svg}");
    assert!(svg.starts_with("<svg width=\"640\""), "{}", &svg[..80]);
}

#[test]
fn names_cannot_break_out_of_the_image() {
    let hostile = "<script>alert(1)</script>\u{1}&\"";
    let svg = panel::draw(&signal_panels(&trends(hostile), &BTreeMap::new()), 300, Theme::Auto, Language::En).unwrap();
    assert!(!svg.contains("<script"), "{svg}");
    assert!(svg.contains("&lt;script&gt;"), "{svg}");
    assert!(!svg.chars().any(|c| c.is_control() && c != '\n'));
}

#[test]
fn the_limit_is_drawn_where_it_is_held() {
    let mut t = trends("temp");
    let by_p = score_panels(&t.scores, Held::PValue);
    assert!(by_p[0].limit.is_some() && by_p[1].limit.is_none());
    assert_eq!(by_p[0].shades, [Shade { from: at(45), until: at(59), quality: Quality::Bad }]);
    t.scores.iter_mut().for_each(|s| s.p_value = None);
    let by_score = score_panels(&t.scores, Held::Score);
    assert_eq!(by_score.len(), 1);
    assert!(by_score[0].limit.is_some());
}

#[test]
fn nothing_to_draw_and_absurd_values_are_drawn_all_the_same() {
    assert!(panel::draw(&[], 640, Theme::Auto, Language::En).is_ok());
    let values = [f64::MAX, f64::MIN, 0.0, f64::MIN_POSITIVE, 1e15, 1e15 + 0.125];
    for pair in values.iter().flat_map(|a| values.iter().map(move |b| [*a, *b])) {
        let dots = pair.iter().enumerate().map(|(i, v)| Dot { at: at(i as i64), value: Some(*v) }).collect();
        assert!(panel::draw(&[Panel::of("x", dots)], 0, Theme::Dark, Language::En).is_ok(), "{pair:?}");
    }
    let ages = [Time(i64::MIN), Time(i64::MAX)].map(|at| Dot { at, value: Some(1.0) });
    assert!(panel::draw(&[Panel::of("x", ages.into())], u32::MAX, Theme::Auto, Language::En).is_ok());
}

#[test]
fn useful_life_is_drawn_with_its_interval() {
    let stretch = |s: i64| {
        let left = 100.0 - s as f64;
        Stretch { at: at(s * 3600), health: Some(left / 100.0), rul: Some([left * 0.8, left, left * 1.3]) }
    };
    let course: Vec<Stretch> = (0..60).map(stretch).collect();
    let panels = health_panels(&course);
    assert_eq!(panels.iter().map(|p| p.title.as_str()).collect::<Vec<_>>(), ["health", "useful life left"]);
    let svg = panel::draw(&panels, 640, Theme::Light, Language::Zh).unwrap();
    assert_eq!(svg.matches("<polygon").count(), 1, "{svg}");
    for part in ["剩余寿命", "健康度", "41 · 32.8 … 53.3", "2 d 前", "100 %"] {
        assert!(svg.contains(part), "{part} is not in {svg}");
    }
    let without = course.iter().map(|s| Stretch { rul: None, ..*s }).collect::<Vec<_>>();
    assert_eq!(health_panels(&without).len(), 1);
    assert!(health_panels(&[]).is_empty());
}

#[test]
fn the_normal_band_is_always_in_sight() {
    let band = Band { unit: "degC".into(), normal: Some([10.0, 60.0]) };
    let panels = signal_panels(&trends("temp"), &[("temp".into(), band)].into());
    assert_eq!(panels[0].normal, Some([10.0, 60.0]));
    let svg = panel::draw(&panels, 640, Theme::Light, Language::En).unwrap();
    assert!(svg.contains("fill=\"#18794E\""), "{svg}");
    assert!(svg.contains("\n0\n") && svg.contains("\n60\n") || svg.contains("\n80\n"), "{svg}");
}
