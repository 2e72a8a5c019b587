//! Looking in from outside, and dead letters going round.

use super::*;

#[test]
fn a_look_from_outside_agrees_with_the_open_store() {
    let dir = fast_dir();
    let (store, _) = open(&small(), dir.path());
    for n in 0..30 {
        commit_one(&store, if n % 5 == 0 { Kind::Alarm } else { Kind::Verdict }, n);
    }
    let outbox = store.outbox("cloud").unwrap();
    let some = outbox.read(4, usize::MAX).unwrap();
    outbox.ack(&some);
    wait_for("the cursor is saved", || Offline::look(dir.path()).unwrap().status().lanes["priority"].records == 2);
    let check = || {
        let offline = Offline::look(dir.path()).unwrap();
        assert_eq!(offline.sinks(), ["cloud"]);
        let waiting: Vec<Stored> = offline.records(Some("cloud")).map(Result::unwrap).collect();
        assert_eq!(numbers(&waiting)[..3], [20, 25, 1]);
        assert_eq!(waiting.len(), 26);
        assert_eq!(offline.records(None).count(), 30);
        assert_eq!(offline.status().lanes["routine"].records, 24);
        assert_eq!(offline.status().lanes["journal"].records, 30);
        let entries: Vec<Entry> = offline.journal_since(Time(0)).map(Result::unwrap).collect();
        assert_eq!(entries.len(), 30);
        let later = entries[17].at;
        let since = offline.journal_since(later).map(Result::unwrap);
        assert_eq!(since.collect::<Vec<_>>(), entries.into_iter().filter(|e| e.at >= later).collect::<Vec<_>>());
    };
    check();
    store.close().unwrap();
    check();
    assert!(Offline::look(&dir.path().join("elsewhere")).is_err());
}

#[test]
fn dead_letters_are_kept_and_can_be_sent_again_once() {
    let dir = fast_dir();
    let (store, _) = open(&small(), dir.path());
    for n in 0..3 {
        commit_one(&store, Kind::Verdict, n);
    }
    let outbox = store.outbox("cloud").unwrap();
    let poison = outbox.read(1, 0).unwrap().remove(0);
    block_on(outbox.dead_letter(poison.clone(), "422 Unprocessable")).unwrap();
    assert_eq!(numbers(&drain(&outbox, 9)), [1, 2]);
    store.close().unwrap();
    let letters: Vec<(u64, DeadLetter)> =
        Offline::look(dir.path()).unwrap().dead_letters().map(Result::unwrap).collect();
    let [(1, DeadLetter::Record { reason, sink, sequence, record, .. })] = &letters[..] else { panic!("{letters:?}") };
    assert_eq!((reason.as_str(), &**sink, *sequence, record), ("422 Unprocessable", "cloud", 1, &poison.record));
    for expected in [1, 0] {
        let (store, _) = open(&small(), dir.path());
        assert_eq!(store.requeue().unwrap(), expected);
        let again = drain(&store.outbox("cloud").unwrap(), 9);
        assert_eq!(again.len() as u64, expected);
        assert!(again.iter().all(|s| s.record == poison.record && s.sequence > 3));
        store.close().unwrap();
    }
}
