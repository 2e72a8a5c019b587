//! How config is read: units, secrets, mistakes and suggestions.

use super::*;

fn problems(text: &str, read: impl Fn(&Section<'_>)) -> Vec<String> {
    let document = Document::parse(text, Surroundings::default());
    read(&document.root());
    document.into_problems().into_iter().map(|p| format!("{}: {}", p.line, p.message)).collect()
}

#[test]
fn measured_periods_lose_their_noise() {
    let us = |n: f64| Duration::from_secs_f64(n / 1e6);
    for (measured, plain) in [(500_021.2, 500_000.0), (500_020.2, 500_000.0), (125_003.0, 125_000.0)] {
        assert_eq!(plain_period(us(measured)), us(plain));
    }
    for exact in [83.333, 33_333.333, 16_666.667, 100_000.0, 1.0, 0.001] {
        assert_eq!(plain_period(us(exact)), us(exact));
    }
    assert_eq!(plain_period(Duration::ZERO), Duration::ZERO);
    assert_eq!(plain_period(Duration::MAX), plain_period(Duration::MAX), "no overflow");
}

#[test]
fn unknown_keys_are_told_with_line_and_suggestion() {
    let found = problems("name = \"x\"\n\nreceive_maximun = 3\nzzz = 1\n", |s| {
        s.string("name");
        s.integer("receive_maximum", 1..=65535);
    });
    assert_eq!(found, ["3: unknown key `receive_maximun`; did you mean `receive_maximum`?", "4: unknown key `zzz`"]);
}

#[test]
fn every_mistake_is_told_at_once() {
    let text = "a = 1\nb = \"5 parsecs\"\nc = 70000\nd = \"purple\"\n[t]\ne = \"x\"\n";
    let found = problems(text, |s| {
        s.string("a");
        s.duration("b");
        s.integer("c", 1..=65535);
        s.choice("d", &[("red", 1), ("green", 2)]);
        s.section("t").expect("a table").boolean("e");
    });
    assert_eq!(
        found,
        [
            "1: a: 1 is not a string in quotes",
            "2: b: \"5 parsecs\" is not a duration such as \"500ms\", \"10s\" or \"7d\"",
            "3: c: 70000 is not between 1 and 65535",
            "4: d: \"purple\" is not one of red, green",
            "6: t.e: \"x\" is not true or false",
        ]
    );
}

#[test]
fn syntax_errors_do_not_hide_the_rest() {
    let found = problems("a = \nb = 2\nworng = 1\n", |s| {
        s.integer("a", 0..=1);
        s.integer("b", 0..=1);
        s.integer("wrong", 0..=1);
    });
    assert!(found.iter().any(|p| p.starts_with("1: not valid TOML")), "{found:?}");
    assert!(found.iter().any(|p| p == "2: b: 2 is not between 0 and 1"), "{found:?}");
    assert!(found.iter().any(|p| p.contains("did you mean `wrong`")), "{found:?}");
}

#[test]
fn secrets_come_from_files_and_are_never_shown() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    std::fs::write(dir.path().join("pw"), "hunter2\n").expect("written");
    let around = Surroundings { base: dir.path().to_path_buf(), credentials: None };
    let document = Document::parse("password_file = \"pw\"", around);
    let secret = document.root().secret("password").expect("a secret");
    assert_eq!(secret.reveal(), "hunter2");
    assert_eq!(format!("{secret:?}"), "***");
    assert!(document.into_problems().is_empty());
}

#[test]
fn credentials_win_over_the_config_directory() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let creds = dir.path().join("creds");
    std::fs::create_dir(&creds).expect("made");
    std::fs::write(creds.join("pw"), "from-systemd").expect("written");
    std::fs::write(dir.path().join("pw"), "from-disk").expect("written");
    let around = Surroundings { base: dir.path().to_path_buf(), credentials: Some(creds) };
    let document = Document::parse("password_file = \"pw\"", around);
    assert_eq!(document.root().secret("password").expect("a secret").reveal(), "from-systemd");
}

#[test]
fn an_unset_variable_is_a_problem_not_an_empty_string() {
    let found = problems("a = \"${ANDON_TEST_NOT_SET}\"", |s| {
        assert_eq!(s.string("a"), None);
    });
    assert_eq!(found, ["1: a: the environment variable ANDON_TEST_NOT_SET is not set"]);
}

#[test]
fn durations_and_sizes() {
    assert_eq!(parse_duration("500ms"), Some(Duration::from_millis(500)));
    assert_eq!(parse_duration("1.5 s"), Some(Duration::from_millis(1500)));
    assert_eq!(parse_duration("7d"), Some(Duration::from_secs(604_800)));
    assert_eq!(parse_duration("0"), Some(Duration::ZERO));
    assert_eq!(parse_duration("-1s"), None);
    assert_eq!(parse_duration("5"), None);
    assert_eq!(parse_size("2GiB"), Some(2 << 30));
    assert_eq!(parse_size("100"), Some(100));
    assert_eq!(parse_size("1e9"), None);
}

#[test]
fn a_secret_that_is_no_string_is_not_shown() {
    for value in ["4815162342", "3.14159", "true", "[\"hunter2\"]", "{ a = \"hunter2\" }"] {
        let told = problems(&format!("password = {value}\n"), |s| assert!(s.secret("password").is_none()));
        assert!(told[0].contains("is not a string in quotes"), "{told:?}");
        assert!(["4815162342", "3.14159", "hunter2"].iter().all(|part| !told[0].contains(part)), "{told:?}");
    }
}
