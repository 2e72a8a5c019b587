//! From an archive to a candidate: unpacked, verified, checked against what was wanted and what was here,
//! judged, placed and loaded.

use std::path::PathBuf;

use tempfile::TempDir;

use super::*;
use crate::model::compat::check_expiry;
use crate::model::contents::Contents;
use crate::model::{Manifest, Model, ModelError, SelfTest, judge, unpack};

/// A verified bundle that is not judged yet.
struct Opened {
    /// Holds what `root` is in.
    work: TempDir,
    root: PathBuf,
    manifest: Manifest,
    release: Release,
    verified: signature::Verified,
    /// The sequence of the bundle that the config names; unreadable, it has no weight.
    configured: u64,
}

impl Delivery {
    /// Unpacks, verifies, judges, places.
    pub(super) async fn admit(&self, wanted: &Wanted, bare: &Release, archive: &Path) -> Result<(), Failed> {
        let opened = self.open(bare, archive).await.map_err(|t| (bare.clone(), t))?;
        let key = format!("signed by {}", opened.verified.key);
        self.tell(opened.release.clone(), Stage::Verified, key, &[("files", opened.verified.files as f64)]).await;
        let release = opened.release.clone();
        let failed = |t: Trouble| (release.clone(), t);
        let s = self.library.standing(&release.model);
        if [s.active, s.candidate, s.previous].iter().flatten().any(|c| c.release == release) {
            // The agent ended between placing it and saying that it is done with.
            return Ok(());
        }
        self.check(wanted, &opened).map_err(|why| failed(Trouble::Final(why)))?;
        let (memory, time) = self.config.judge;
        let (root, stop) = (opened.root.clone(), self.shared.stop.clone());
        let judged = blocking(move || {
            let limits = judge::Limits { memory, time };
            judge::apart(judge::own_program(), &root, &limits, &|| stop.is_cancelled()).map_err(trouble)
        });
        let found = judged.await.map_err(failed)?;
        let figures = [("cases", found.cases as f64), ("p99_ms", found.p99_ms), ("ram_mb", found.ram_mb)];
        let reason = format!("{} golden cases passed here", found.cases);
        self.tell(release.clone(), Stage::Selftest, reason, &figures).await;
        self.place(opened, wanted.rollout.clone()).await.map_err(failed)
    }

    async fn open(&self, bare: &Release, archive: &Path) -> Result<Opened, Trouble> {
        let (library, archive, keys) = (self.library.clone(), archive.to_path_buf(), self.trust.keys.clone());
        let (bare, models_dir) = (bare.clone(), self.models_dir.clone());
        let most = self.config.max_bundle.saturating_mul(2);
        blocking(move || {
            let work = library.workspace().map_err(disk)?;
            let file = std::fs::File::open(&archive).map_err(disk)?;
            let root = unpack::unpack(file, work.path(), most).map_err(|e| match e {
                unpack::Failure::Bad(why) => Trouble::Final(why),
                unpack::Failure::Disk(e) => disk(e),
            })?;
            // Where it is unpacked says nothing to those who read the reason.
            let shown = root.display().to_string();
            let plainly = |e: ModelError| {
                Trouble::Final(e.to_string().replace(&format!("{shown}: "), "").replace(&format!("{shown}/"), ""))
            };
            let verified = signature::verify(&root, &keys).map_err(plainly)?;
            // Everything else of it is parsed by the judge, in a process with limits.
            let m = Manifest::read(&root).map_err(plainly)?;
            let digest = delivery::sha256_of(&root.join("model.onnx"));
            let digest = digest.map_err(|e| Trouble::Final(format!("its model.onnx cannot be read: {e}")))?;
            let model = if plain(&m.name) { m.name.as_str().into() } else { bare.model };
            let (version, digest) = (m.version.as_str().into(), digest.as_str().into());
            let release = Release { model, version, sequence: m.sequence.unwrap_or(0), digest };
            let here = Manifest::read(&models_dir.join(&*release.model)).ok();
            let configured = here.and_then(|m| m.sequence).unwrap_or(0);
            Ok(Opened { work, root, release, verified, configured, manifest: m })
        })
        .await
    }

    /// Whether it is what was wanted, newer than what was here, and for an agent like this one.
    fn check(&self, wanted: &Wanted, opened: &Opened) -> Result<(), String> {
        let m = &opened.manifest;
        if !wanted.model.is_empty() && (&wanted.model, &wanted.version) != (&m.name, &m.version) {
            let (name, version) = (&wanted.model, &wanted.version);
            return Err(format!("it is {} version {}, and {name} version {version} is wanted", m.name, m.version));
        }
        if !self.known.contains(&m.name) {
            return Err(format!("no [[machine]] uses a model {:?}", m.name));
        }
        if !plain(&m.version) {
            return Err(format!("its version {:?} is not made of letters, digits and -_.+", m.version));
        }
        let Some(sequence) = m.sequence else {
            return Err("its model.json has no `sequence`, which every delivered bundle needs".into());
        };
        let highest = self.library.standing(&m.name).highest.max(opened.configured);
        if sequence <= highest {
            return Err(format!("a downgrade: its sequence {sequence} is not above {highest}, which was here"));
        }
        check_expiry(m.expires, Time::now())?;
        m.compat.check(env!("CARGO_PKG_VERSION"))
    }

    async fn place(&self, opened: Opened, rollout: Rollout) -> Result<(), Trouble> {
        let (library, release, at) = (self.library.clone(), opened.release.clone(), Time::now());
        let (plan, keys) = (rollout.clone(), self.trust.keys.clone());
        let model = blocking(move || {
            let Opened { work, root, release, .. } = opened;
            let candidate = library.place(&root, release, plan, at).map_err(disk)?;
            drop(work);
            let contents = Contents::read_all(&candidate.dir).map_err(trouble)?;
            signature::verify_contents(&contents, &keys).map_err(trouble)?;
            Model::from_contents(contents, SelfTest::Done).map_err(trouble)
        });
        let news = ModelNews::Candidate { at, release, rollout };
        // It fails only when the engine has ended, and with it the agent.
        let _ = self.orders.send(Order::News(news, Some(model.await?))).await;
        Ok(())
    }
}

/// What the disk does not do now it may do later.
pub(super) fn disk(e: std::io::Error) -> Trouble {
    Trouble::Passing(format!("this gateway's disk: {e}"))
}

/// A bundle that cannot be used stays so; one that could not be tried may be tried again.
fn trouble(e: ModelError) -> Trouble {
    match e {
        ModelError::Read { .. } => Trouble::Passing(e.to_string()),
        e => Trouble::Final(e.to_string()),
    }
}
