//! Untrusted text as it may stand in a log line, on the board and in an answer: printable, short, and
//! without what looks like a secret.

/// Bytes of a payload that are shown at most.
const EXAMPLE_BYTES: usize = 60;
/// The same, where they are no text and are shown in hexadecimal.
const HEX_BYTES: usize = 24;
/// Bytes of a payload in which a secret is looked for.
const SEARCHED_BYTES: usize = 4096;
/// What follows one of these is not shown. In lower case.
const SECRET_WORDS: [&str; 14] = [
    "passw",
    "passphrase",
    "passcode",
    "pwd",
    "token",
    "secret",
    "auth",
    "bearer",
    "credential",
    "apikey",
    "api_key",
    "api-key",
    "private",
    "cookie",
];

/// Control characters, line separators and marks that change the direction of text are escaped. Cut after at
/// most `max` bytes of output, with `…` where something is left out.
pub fn printable(text: &str, max: usize) -> String {
    let mut out = String::with_capacity(text.len().min(max));
    for c in text.chars() {
        let before = out.len();
        if is_unprintable(c) {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
        if out.len() > max {
            out.truncate(before);
            out.push('…');
            break;
        }
    }
    out
}

fn is_unprintable(c: char) -> bool {
    let invisible = ['\u{200b}'..='\u{200f}', '\u{2028}'..='\u{202e}', '\u{2060}'..='\u{206f}'];
    c.is_control() || c == '\u{feff}' || invisible.iter().any(|range| range.contains(&c))
}

/// The beginning of a payload for a person: at most 60 bytes of it, printable, nothing that follows a word
/// like `password` or `token`. Bytes that are no text are shown in hexadecimal.
pub fn example(payload: &[u8]) -> String {
    let shown = &payload[..payload.len().min(EXAMPLE_BYTES)];
    let (shown, end) = match after_secret_word(shown) {
        Some(end) => (&shown[..end], "[hidden]"),
        None if payload.len() > shown.len() => (shown, "…"),
        None => (shown, ""),
    };
    match std::str::from_utf8(shown) {
        Ok(text) => format!("{}{end}", printable(text, 4 * EXAMPLE_BYTES)),
        // The cut may go through a character.
        Err(error) if error.error_len().is_none() => {
            let text = String::from_utf8_lossy(&shown[..error.valid_up_to()]);
            format!("{}{end}", printable(&text, 4 * EXAMPLE_BYTES))
        }
        Err(_) => {
            let hex: String = shown.iter().take(HEX_BYTES).map(|b| format!("{b:02x}")).collect();
            let end = if shown.len() > HEX_BYTES && end.is_empty() { "…" } else { end };
            format!("0x{hex}{end}")
        }
    }
}

/// Whether there is a word like `password` or `token` in the first 4 KiB.
pub fn mentions_secret(bytes: &[u8]) -> bool {
    after_secret_word(&bytes[..bytes.len().min(SEARCHED_BYTES)]).is_some()
}

/// The end of the first such word.
fn after_secret_word(bytes: &[u8]) -> Option<usize> {
    let lower = bytes.to_ascii_lowercase();
    let end = |word: &str| memchr::memmem::find(&lower, word.as_bytes()).map(|at| at + word.len());
    SECRET_WORDS.iter().filter_map(|word| end(word)).min()
}

/// A reason without what it quotes: names, numbers and texts between quotation marks are replaced, so that
/// reasons of one kind are equal and nothing of a payload is left in them.
pub fn reason_class(reason: &str) -> String {
    let mut out = String::new();
    let mut chars = reason.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' => {
                skip_quoted(&mut chars);
                out.push('…');
            }
            '/' | '0'..='9' => {
                while chars.next_if(|c| c.is_alphanumeric() || "/._~-".contains(*c)).is_some() {}
                out.push('…');
            }
            c => out.push(c),
        }
    }
    printable(&out, 120)
}

/// Up to and with the next quotation mark that is not escaped.
fn skip_quoted(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) {
    while let Some(c) = chars.next() {
        match c {
            '\\' => {
                chars.next();
            }
            '"' => return,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn nothing_can_forge_a_line_or_hide() {
        assert_eq!(printable("a\nERROR b\u{1b}[31m\u{202e}", 100), "a\\nERROR b\\u{1b}[31m\\u{202e}");
        assert_eq!(printable("Grüße aus 東京", 100), "Grüße aus 東京");
        assert_eq!(printable("abcdef", 3), "abc…");
    }

    #[test]
    fn examples_are_short_and_without_secrets() {
        assert_eq!(example(b"{\"v\":1}"), "{\"v\":1}");
        assert_eq!(example(b"{\"user\":\"me\",\"Password\":\"hunter2\"}"), "{\"user\":\"me\",\"Passw[hidden]");
        assert_eq!(example(b"Authorization: Bearer abc"), "Auth[hidden]");
        assert_eq!(example(&[0x0a, 0xff, 0x00]), "0x0aff00");
        assert_eq!(example("é".repeat(100).as_bytes()), format!("{}…", "é".repeat(30)));
        assert!(mentions_secret(b"x=1 TOKEN=2") && !mentions_secret(b"temperature=21.5"));
    }

    #[test]
    fn reasons_of_one_kind_are_equal() {
        assert_eq!(reason_class("\"21,5\" is not a number"), "… is not a number");
        assert_eq!(reason_class("there is nothing at /a/b~1c/0"), "there is nothing at …");
        assert_eq!(reason_class("its 300000 bytes are more than 262144"), "its … bytes are more than …");
        assert_eq!(reason_class("\"a\\\"b\" cannot be"), "… cannot be");
    }

    proptest! {
        #[test]
        fn whatever_comes_is_short_and_printable(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let text = example(&bytes);
            prop_assert!(text.len() <= 4 * EXAMPLE_BYTES + 16, "{text}");
            prop_assert!(!text.chars().any(is_unprintable), "{text:?}");
        }

        #[test]
        fn what_follows_a_secret_word_is_never_shown(front in "[a-z:{ ]{0,70}", word in 0usize..SECRET_WORDS.len()) {
            let payload = format!("{front}{}: QQQQ", SECRET_WORDS[word]);
            prop_assert!(!example(payload.as_bytes()).contains('Q'));
        }
    }
}
