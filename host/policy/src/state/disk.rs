//! The file of one policy's state: a small database, opened whole and written in
//! transactions.
//!
//! Entries live in memory; the file only has to outlive the process. It is read once, and
//! its checksums are verified then, so what is damaged is found before it is believed and
//! set aside under another name: nothing is ever deleted here. A new file appears under
//! its name only when it is whole.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use redb::{
    Builder, Database, DatabaseError, ReadableDatabase, ReadableTable, StorageError,
    TableDefinition,
};
use sha2::{Digest, Sha256};

/// Keys and values, as a policy sees them.
pub(super) type Map = BTreeMap<String, Vec<u8>>;
/// What changed since the last commit; none = deleted.
pub(super) type Changes = BTreeMap<String, Option<Vec<u8>>>;

const ENTRIES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("entries");
/// Pages that the database keeps in memory. Entries are there already, so a few serve.
const CACHE_BYTES: usize = 256 << 10;
/// Damaged files of one policy that are kept apart by number.
const ASIDE_MAX: u32 = 1000;
/// How files began before there was a database: `HSTATE1`, entries, their sha256.
const OLD_MAGIC: &[u8; 8] = b"HSTATE1\n";

/// One file, opened when there is something to read or to write.
#[derive(Debug)]
pub(super) struct File {
    path: PathBuf,
    database: Option<Database>,
}

/// Why an existing file was not opened.
enum Unopened {
    /// Its content is not what was written.
    Damaged(String),
    /// It may be fine, but this process cannot use it.
    Unusable(String),
}

impl File {
    /// Opens what is there, and makes the folder. A damaged file is set aside and told in the
    /// log.
    ///
    /// # Errors
    /// The folder cannot be used, or another process has the file.
    pub fn open(path: PathBuf) -> Result<(Self, Map), String> {
        let mut file = Self {
            path,
            database: None,
        };
        if let Some(dir) = file.path.parent() {
            let cannot = |e| format!("the folder {} cannot be used: {e}", dir.display());
            fs::create_dir_all(dir).map_err(cannot)?;
        }
        match file.path.try_exists() {
            Ok(true) => {}
            Ok(false) => {
                let map = file.take_over_old()?;
                return Ok((file, map));
            }
            Err(error) => return Err(format!("{} cannot be read: {error}", file.path.display())),
        }
        // The database promises not to panic over a damaged file; a broken promise must
        // not take the host with it.
        let read = catch_unwind(AssertUnwindSafe(|| read(&file.path)))
            .unwrap_or_else(|_| Err(Unopened::Damaged("the database failed on it".into())));
        match read {
            Ok((database, map)) => {
                file.database = Some(database);
                Ok((file, map))
            }
            Err(Unopened::Unusable(text)) => Err(text),
            Err(Unopened::Damaged(text)) => {
                let aside = set_aside(&file.path)
                    .map_err(|e| format!("{} is damaged and stays: {e}", file.path.display()))?;
                tracing::warn!(
                    "state {} is damaged ({text}); set aside as {}, the policy starts empty",
                    file.path.display(),
                    aside.display()
                );
                Ok((file, Map::new()))
            }
        }
    }

    /// Writes changes in one transaction; they are on the disk when this returns.
    ///
    /// # Errors
    /// The words of the system; nothing of the changes is in the file then, and the next
    /// call opens it anew.
    pub fn commit(&mut self, changes: &Changes) -> Result<(), String> {
        let done = self.try_commit(changes);
        if done.is_err() {
            self.database = None;
        }
        done.map_err(|error| error.to_string())
    }

    fn try_commit(&mut self, changes: &Changes) -> Result<(), redb::Error> {
        if self.database.is_none() && self.path.exists() {
            self.database = Some(builder().open(&self.path)?);
        }
        if let Some(database) = &self.database {
            return write(database, changes);
        }
        // Under another name until it is whole: a crash leaves the old state, or this.
        let fresh = self.path.with_extension("redb.new");
        if fresh.exists() {
            fs::remove_file(&fresh)?;
        }
        let database = builder().create(&fresh)?;
        write(&database, changes)?;
        fs::rename(&fresh, &self.path)?;
        sync_folder(&self.path)?;
        self.database = Some(database);
        Ok(())
    }

    /// The file of hosts before there was a database, brought over once.
    fn take_over_old(&mut self) -> Result<Map, String> {
        let old = self.path.with_extension("state");
        let bytes = match fs::read(&old) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Map::new()),
            Err(error) => return Err(format!("{} cannot be read: {error}", old.display())),
        };
        let Some(map) = decode_old(&bytes) else {
            let aside = set_aside(&old)
                .map_err(|e| format!("{} is damaged and stays: {e}", old.display()))?;
            tracing::warn!(
                "state {} is damaged; set aside as {}, the policy starts empty",
                old.display(),
                aside.display()
            );
            return Ok(Map::new());
        };
        let changes = map.iter().map(|(k, v)| (k.clone(), Some(v.clone())));
        self.commit(&changes.collect())?;
        // The database wins from now on, so a rename that fails does no harm.
        let done = old.with_extension("state.migrated");
        if let Err(error) = fs::rename(&old, &done) {
            tracing::warn!("{} was taken over and stays: {error}", old.display());
        }
        Ok(map)
    }
}

fn builder() -> Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES);
    builder
}

fn read(path: &Path) -> Result<(Database, Map), Unopened> {
    let database = builder()
        .set_check_integrity_on_open(true)
        .open(path)
        .map_err(|error| unopened(path, error))?;
    let map = entries(&database).map_err(|error| Unopened::Damaged(error.to_string()))?;
    Ok((database, map))
}

fn unopened(path: &Path, error: DatabaseError) -> Unopened {
    let text = format!("{}: {error}", path.display());
    match error {
        DatabaseError::Storage(StorageError::Corrupted(_)) => Unopened::Damaged(error.to_string()),
        DatabaseError::Storage(StorageError::Io(e))
            if matches!(
                e.kind(),
                io::ErrorKind::InvalidData
                    | io::ErrorKind::UnexpectedEof
                    | io::ErrorKind::InvalidInput
            ) =>
        {
            Unopened::Damaged(e.to_string())
        }
        DatabaseError::DatabaseAlreadyOpen => {
            Unopened::Unusable(format!("{} is in use by another host", path.display()))
        }
        _ => Unopened::Unusable(text),
    }
}

fn entries(database: &Database) -> Result<Map, redb::Error> {
    let reading = database.begin_read()?;
    let table = match reading.open_table(ENTRIES) {
        Ok(table) => table,
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(Map::new()),
        Err(error) => return Err(error.into()),
    };
    let mut map = Map::new();
    for entry in table.iter()? {
        let (key, value) = entry?;
        map.insert(key.value().to_string(), value.value().to_vec());
    }
    Ok(map)
}

fn write(database: &Database, changes: &Changes) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    {
        let mut table = transaction.open_table(ENTRIES)?;
        for (key, value) in changes {
            match value {
                Some(value) => drop(table.insert(key.as_str(), value.as_slice())?),
                None => drop(table.remove(key.as_str())?),
            }
        }
    }
    Ok(transaction.commit()?)
}

/// Renames a file so that another can take its place; a name that is taken stays.
fn set_aside(path: &Path) -> io::Result<PathBuf> {
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or("");
    for number in 1..=ASIDE_MAX {
        let aside = path.with_extension(match number {
            1 => format!("{extension}.damaged"),
            n => format!("{extension}.damaged-{n}"),
        });
        if !aside.exists() {
            fs::rename(path, &aside)?;
            return Ok(aside);
        }
    }
    Err(io::Error::other(format!(
        "{ASIDE_MAX} damaged files are there already"
    )))
}

/// Makes a rename outlive a power cut.
pub(crate) fn sync_folder(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(folder) => fs::File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

fn decode_old(bytes: &[u8]) -> Option<Map> {
    let (body, sum) = bytes.split_at_checked(bytes.len().checked_sub(32)?)?;
    if Sha256::digest(body).as_slice() != sum {
        return None;
    }
    let mut rest = body.strip_prefix(OLD_MAGIC)?;
    let mut map = Map::new();
    while !rest.is_empty() {
        let key = String::from_utf8(part(&mut rest)?.to_vec()).ok()?;
        map.insert(key, part(&mut rest)?.to_vec());
    }
    Some(map)
}

fn part<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (len, tail) = rest.split_first_chunk::<4>()?;
    let (part, tail) = tail.split_at_checked(u32::from_le_bytes(*len) as usize)?;
    *rest = tail;
    Some(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changes(pairs: &[(&str, Option<&[u8]>)]) -> Changes {
        pairs
            .iter()
            .map(|(k, v)| (k.to_string(), v.map(<[u8]>::to_vec)))
            .collect()
    }

    fn encode_old(pairs: &[(&str, &[u8])]) -> Vec<u8> {
        let mut out = OLD_MAGIC.to_vec();
        for (key, value) in pairs {
            for part in [key.as_bytes(), value] {
                out.extend_from_slice(&(part.len() as u32).to_le_bytes());
                out.extend_from_slice(part);
            }
        }
        let sum = Sha256::digest(&out);
        out.extend_from_slice(&sum);
        out
    }

    #[test]
    fn what_was_committed_is_read_again_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.redb");
        let (mut file, map) = File::open(path.clone()).unwrap();
        assert!(map.is_empty() && !path.exists(), "no file before a write");
        file.commit(&changes(&[("a", Some(b"1")), ("b", Some(b"2"))]))
            .unwrap();
        file.commit(&changes(&[("a", None), ("c", Some(b""))]))
            .unwrap();
        assert!(File::open(path.clone()).is_err(), "one process at a time");
        drop(file);
        let (_, map) = File::open(path).unwrap();
        assert_eq!(
            map,
            Map::from([("b".into(), b"2".to_vec()), ("c".into(), vec![])])
        );
    }

    #[test]
    fn an_old_file_is_taken_over_once_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.redb");
        let old = dir.path().join("p.state");
        fs::write(&old, encode_old(&[("n", b"7"), ("k", &[0, 255])])).unwrap();
        let (mut file, map) = File::open(path.clone()).unwrap();
        assert_eq!(map["n"], b"7");
        assert!(path.exists() && !old.exists());
        assert!(dir.path().join("p.state.migrated").exists());
        file.commit(&changes(&[("n", Some(b"8"))])).unwrap();
        drop(file);
        // Should an old file come back, the database is newer.
        fs::write(&old, encode_old(&[("n", b"1")])).unwrap();
        let (_, map) = File::open(path).unwrap();
        assert_eq!(
            (map["n"].as_slice(), map["k"].as_slice()),
            (&b"8"[..], &[0, 255][..])
        );
    }

    #[test]
    fn an_old_file_that_was_cut_anywhere_is_set_aside() {
        let whole = encode_old(&[("key", b"value")]);
        for len in 0..whole.len() {
            assert_eq!(decode_old(&whole[..len]), None, "{len} bytes");
        }
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("p.state"), &whole[..20]).unwrap();
        let (_, map) = File::open(dir.path().join("p.redb")).unwrap();
        assert!(map.is_empty());
        assert!(dir.path().join("p.state.damaged").exists());
    }

    /// Every page is hit: cuts at each, and bytes overwritten in each.
    #[test]
    fn a_damaged_file_is_set_aside_by_name_or_still_whole_and_never_a_panic() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.redb");
        let (mut file, _) = File::open(path.clone()).unwrap();
        for n in 0..200_u32 {
            file.commit(&changes(&[(&format!("key {n}"), Some(&[7; 300]))]))
                .unwrap();
        }
        drop(file);
        let (_, good) = File::open(path.clone()).unwrap();
        let whole = fs::read(&path).unwrap();
        let (mut aside, mut sound) = (0, 0);
        let step = (whole.len() / 120).max(1);
        for at in (0..whole.len()).step_by(step) {
            for cut in [true, false] {
                let mut bytes = whole.clone();
                match cut {
                    true => bytes.truncate(at),
                    false => {
                        let end = (at + 64).min(bytes.len());
                        bytes[at..end].iter_mut().for_each(|b| *b ^= 0x5a);
                    }
                }
                fs::write(&path, &bytes).unwrap();
                let name = format!("byte {at}, cut {cut}");
                match File::open(path.clone()) {
                    Ok((_, map)) if map.is_empty() => {
                        assert!(!path.exists(), "{name}: it was not set aside");
                        aside += 1;
                    }
                    // Damage where nothing is kept.
                    Ok((_, map)) => {
                        assert_eq!(map, good, "{name}: other entries than were written");
                        sound += 1;
                    }
                    Err(text) => panic!("{name}: {text}"),
                }
            }
        }
        let kept = fs::read_dir(dir.path()).unwrap().count();
        println!("{aside} damaged files set aside, {sound} sound");
        assert!(aside > 100 && kept >= aside, "{aside} aside, {kept} kept");
    }
}
