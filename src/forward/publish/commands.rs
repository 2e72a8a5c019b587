//! What people may do to alarms over MQTT, where the config allows it: a command names the alarm and
//! carries the token; the answer comes once it is on disk.

use std::time::Duration;

use ring::hmac;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::{mpsc, oneshot};

use crate::settings::Secret;
use crate::types::{Action, Command, RecordId, Refusal, Target};

/// Answers on their way to the broker.
const N_ANSWERS: usize = 16;
/// For the engine to answer a command.
const PATIENCE: Duration = Duration::from_secs(5);
/// Larger commands are refused unread.
const MAX_BYTES: usize = 4096;
const MAX_WHO_CHARS: usize = 40;
const MAX_COMMENT_CHARS: usize = 200;

#[derive(Deserialize)]
struct Wire {
    #[serde(default)]
    token: String,
    alarm: Option<String>,
    machine: Option<String>,
    action: String,
    #[serde(default)]
    by: String,
    #[serde(default)]
    comment: String,
    seconds: Option<u32>,
}

/// Carries commands to the engine and its answers back.
pub struct Commands {
    token: Secret,
    engine: mpsc::Sender<Command>,
    answers: (mpsc::Sender<String>, mpsc::Receiver<String>),
}

impl Commands {
    pub fn new(token: Secret, engine: mpsc::Sender<Command>) -> Commands {
        Commands { token, engine, answers: mpsc::channel(N_ANSWERS) }
    }

    /// The next answer to publish.
    pub async fn answer(&mut self) -> Option<String> {
        self.answers.1.recv().await
    }

    /// Takes a command; whatever becomes of it is answered.
    pub fn take(&self, payload: &[u8]) {
        let (asked, answers) = (self.read(payload), self.answers.0.clone());
        let (reply, engine) = oneshot::channel();
        let (about, sent) = match asked {
            Ok((about, mut command)) => {
                command.reply = reply;
                (about, self.engine.try_send(command).map_err(|_| "the agent is too busy to take this".to_owned()))
            }
            Err(why) => (json!({}), Err(why)),
        };
        tokio::spawn(async move {
            let done = match sent {
                Err(why) => Err(why),
                Ok(()) => match tokio::time::timeout(PATIENCE, engine).await {
                    Ok(Ok(Ok(()))) => Ok(()),
                    Ok(Ok(Err(Refusal::NoSuchAlarm))) => Err("no such alarm stands".into()),
                    Ok(Ok(Err(Refusal::NotNow(why)))) => Err(why),
                    Ok(Err(_)) | Err(_) => Err("the agent could not say that this is on disk; look again".into()),
                },
            };
            let mut answer = about;
            answer["done"] = done.is_ok().into();
            if let Err(why) = done {
                answer["error"] = why.into();
            }
            // A publisher that has gone answers nobody.
            let _ = answers.try_send(answer.to_string());
        });
    }

    fn read(&self, payload: &[u8]) -> Result<(serde_json::Value, Command), String> {
        if payload.len() > MAX_BYTES {
            return Err(format!("a command has at most {MAX_BYTES} bytes"));
        }
        let wire: Wire = serde_json::from_slice(payload).map_err(|e| format!("not the JSON expected: {e}"))?;
        if !same(self.token.reveal(), &wire.token) {
            return Err("this is not the token".into());
        }
        let target = match (&wire.alarm, &wire.machine) {
            (Some(id), None) => Target::Alarm(read_id(id).ok_or("an alarm's id is 32 hex digits")?),
            (None, Some(machine)) => Target::Machine(machine.as_str().into()),
            _ => return Err("name either the alarm or the machine".into()),
        };
        let action = Action::named(&wire.action, wire.seconds)?;
        let name = tidy(&wire.by, MAX_WHO_CHARS);
        let who = if name.is_empty() { "MQTT".into() } else { format!("{name} (MQTT)") };
        let comment = Some(tidy(&wire.comment, MAX_COMMENT_CHARS)).filter(|c| !c.is_empty());
        let about = json!({"alarm": wire.alarm, "machine": wire.machine, "action": action.as_str(), "who": who});
        // The reply that counts is put in by the caller.
        Ok((about, Command { target, action, who, comment, reply: oneshot::channel().0 }))
    }
}

#[cfg(any(test, feature = "fuzz"))]
pub(super) fn any_bytes(bytes: &[u8]) {
    let commands = Commands::new(Secret::new("t".into()), mpsc::channel(1).0);
    match commands.read(bytes) {
        Ok((_, command)) => assert!(command.who.chars().count() <= MAX_WHO_CHARS + " (MQTT)".len()),
        Err(why) => assert!(!why.is_empty()),
    }
}

/// Compares in constant time.
fn same(token: &str, given: &str) -> bool {
    let key = hmac::Key::new(hmac::HMAC_SHA256, token.as_bytes());
    let tag = hmac::sign(&key, token.as_bytes());
    hmac::verify(&key, given.as_bytes(), tag.as_ref()).is_ok()
}

fn read_id(text: &str) -> Option<RecordId> {
    let mut id = [0; 16];
    let hex = text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit());
    for (i, byte) in id.iter_mut().enumerate().take(if hex { 16 } else { 0 }) {
        *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).ok()?;
    }
    hex.then_some(RecordId(id))
}

fn tidy(text: &str, limit: usize) -> String {
    text.trim().chars().filter(|c| !c.is_control()).take(limit).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn commands() -> (Commands, mpsc::Receiver<Command>) {
        let (engine, heard) = mpsc::channel(4);
        (Commands::new(Secret::new("only for this test".into()), engine), heard)
    }

    #[tokio::test]
    async fn only_who_has_the_token_is_obeyed_and_everybody_is_answered() {
        let (mut commands, mut heard) = commands();
        let id = "00112233445566778899aabbccddeeff";
        let command = |token: &str| {
            let all = json!({"token": token, "alarm": id, "action": "shelve", "seconds": 60, "by": "Ana\n"});
            all.to_string().into_bytes()
        };
        commands.take(&command("wrong"));
        let answer = commands.answer().await.expect("an answer");
        assert!(answer.contains("this is not the token") && heard.try_recv().is_err(), "{answer}");
        commands.take(&command("only for this test"));
        let taken = heard.recv().await.expect("a command");
        assert_eq!((taken.action, taken.who.as_str()), (Action::Shelve(60), "Ana (MQTT)"));
        assert_eq!(taken.target, Target::Alarm(read_id(id).expect("an id")));
        taken.reply.send(Err(Refusal::NotNow("it is critical".into()))).expect("somebody waits");
        let answer: serde_json::Value = serde_json::from_str(&commands.answer().await.expect("one")).expect("JSON");
        assert_eq!((&answer["done"], &answer["error"]), (&json!(false), &json!("it is critical")));
        assert_eq!(answer["alarm"], id);
    }

    proptest! {
        #[test]
        fn any_payload_is_survived(bytes in prop::collection::vec(any::<u8>(), 0..300), id in ".{30,34}") {
            let (commands, _heard) = commands();
            prop_assert!(commands.read(&bytes).is_err());
            let _ = read_id(&id);
        }
    }
}
