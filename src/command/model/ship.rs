//! `andon model sign`, `verify` and `install`: what makers do to a bundle before it is shipped, and what
//! is done at the gateway by hand where no service delivers models.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, ensure};
use clap::Args;

use super::failed;
use crate::command::ConfigFile;
use crate::config::Needs;
use crate::model::compat::check_expiry;
use crate::model::library::plain;
use crate::model::signature::{PrivateKey, PublicKey};
use crate::model::{Manifest, ModelError, judge, signature, unpack};
use crate::types::Time;

/// Unpacked bytes of a bundle that is installed from an archive.
const MAX_UNPACKED: u64 = 1 << 30;

/// See `andon model sign --help`.
#[derive(Args)]
pub struct Sign {
    /// The bundle's directory
    path: PathBuf,
    /// The private key in PEM: ECDSA over P-256 or P-384
    #[arg(long, value_name = "PEM")]
    key: PathBuf,
}

/// See `andon model verify --help`.
#[derive(Args)]
pub struct Verify {
    /// The bundle's directory
    path: PathBuf,
    /// A public key in PEM; several: any of them will do
    #[arg(long, value_name = "PEM", required = true)]
    key: Vec<PathBuf>,
}

/// See `andon model install --help`.
#[derive(Args)]
pub struct Install {
    /// The bundle's directory, or a tar archive of it
    path: PathBuf,
    #[command(flatten)]
    file: ConfigFile,
    /// Also if its sequence is not higher than that of the bundle it replaces
    #[arg(long)]
    allow_downgrade: bool,
}

/// Signs.
pub fn sign(options: &Sign) -> Result<()> {
    let key = PrivateKey::read(&options.key).map_err(|e| anyhow!(e))?;
    let files = signature::sign(&options.path, &key)?;
    println!("{}: {files} files signed by {}", options.path.display(), key.public().fingerprint());
    Ok(())
}

/// Verifies.
pub fn verify(options: &Verify) -> Result<()> {
    let keys: Result<Vec<PublicKey>, String> = options.key.iter().map(|k| PublicKey::read(k)).collect();
    let verified = signature::verify(&options.path, &keys.map_err(|e| anyhow!(e))?)?;
    println!("{}: {} files as signed by {}", options.path.display(), verified.files, verified.key);
    Ok(())
}

/// Judges, then puts into `models_dir` in one step; what was there before is kept beside it.
pub fn install(options: &Install) -> Result<()> {
    let config = options.file.load(Needs::default())?;
    let models = &config.agent.models_dir;
    fs::create_dir_all(models).with_context(|| format!("making {}", models.display()))?;
    // On the same file system, so that it can be moved to its place.
    let work = tempfile::Builder::new().prefix(".install-").tempdir_in(models);
    let work = work.with_context(|| format!("making a directory in {}", models.display()))?;
    let root = take(&options.path, work.path()).map_err(|why| failed(format!("{}: {why}", options.path.display())))?;
    let verified = config.trust.admit(&root)?.verified;
    let found = judge::apart(judge::own_program(), &root, &judge::Limits::default(), &|| false)?;
    let manifest = Manifest::read(&root)?;
    check_expiry(manifest.expires, Time::now()).map_err(failed)?;
    ensure!(plain(&manifest.name), ModelError::Test(format!("{:?} cannot be the name of a directory", manifest.name)));
    let to = models.join(&manifest.name);
    if let Ok(old) = Manifest::read(&to)
        && !options.allow_downgrade
        && manifest.sequence.unwrap_or(0) <= old.sequence.unwrap_or(0)
        && manifest.sequence.or(old.sequence).is_some()
    {
        let (new, old) = (manifest.sequence.unwrap_or(0), old.sequence.unwrap_or(0));
        return Err(failed(format!("its sequence {new} is not above {old} of the one in use (--allow-downgrade)")));
    }
    place(&root, &to)?;
    let by = verified.map_or("not signed".to_owned(), |v| format!("signed by {}", v.key));
    println!("{}: version {}, {by}", to.display(), found.version);
    println!("  {} golden cases passed, p99 {:.2} ms, {:.0} MiB", found.cases, found.p99_ms, found.ram_mb);
    println!("  a running agent takes it over when it reloads its config (SIGHUP)");
    Ok(())
}

/// A copy of the bundle in `to`, from a directory or an archive.
fn take(from: &Path, to: &Path) -> Result<PathBuf, String> {
    let unreadable = |e: std::io::Error| e.to_string();
    if !from.is_dir() {
        let archive = fs::File::open(from).map_err(unreadable)?;
        return unpack::unpack(archive, to, MAX_UNPACKED).map_err(|e| match e {
            unpack::Failure::Bad(why) => why,
            unpack::Failure::Disk(e) => e.to_string(),
        });
    }
    let mut left = signature::MAX_FILES;
    copy(from, to, &mut left)?;
    Ok(to.to_path_buf())
}

fn copy(from: &Path, to: &Path, left: &mut usize) -> Result<(), String> {
    for entry in fs::read_dir(from).map_err(|e| e.to_string())? {
        let entry = entry.map_err(|e| e.to_string())?;
        let (name, kind) = (entry.file_name(), entry.file_type().map_err(|e| e.to_string())?);
        *left = left.checked_sub(1).ok_or_else(|| format!("it holds more than {} files", signature::MAX_FILES))?;
        let to = to.join(&name);
        if kind.is_dir() {
            fs::create_dir(&to).map_err(|e| e.to_string())?;
            copy(&entry.path(), &to, left)?;
        } else if kind.is_file() {
            fs::copy(entry.path(), &to).map_err(|e| format!("{name:?}: {e}"))?;
        } else {
            return Err(format!("{name:?} is not a plain file: links and the like are not taken"));
        }
    }
    Ok(())
}

/// Moves it to its place; the one before is kept as `.NAME.previous`.
fn place(root: &Path, to: &Path) -> Result<()> {
    let name = to.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    let kept = to.with_file_name(format!(".{name}.previous"));
    sync(root).context("writing the bundle to the disk")?;
    if to.exists() {
        if kept.exists() {
            fs::remove_dir_all(&kept).with_context(|| format!("removing {}", kept.display()))?;
        }
        fs::rename(to, &kept).with_context(|| format!("moving {} aside", to.display()))?;
    }
    let _ = fs::set_permissions(root, std::os::unix::fs::PermissionsExt::from_mode(0o755));
    fs::rename(root, to).with_context(|| format!("moving the bundle to {}", to.display()))?;
    to.parent().map_or(Ok(()), |above| fs::File::open(above)?.sync_all()).context("writing to the disk")
}

fn sync(dir: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() { sync(&path)? } else { fs::File::open(&path)?.sync_all()? }
    }
    fs::File::open(dir)?.sync_all()
}
