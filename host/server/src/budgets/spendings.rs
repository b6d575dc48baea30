//! What was spent, in a file, so that a restart is no new budget.
//!
//! One small file, replaced in one step, at most once a second and only after a change. A host
//! that is killed forgets at most the last second and what was reserved; a cut of power may cost
//! the file system's delay as well, which is less than a sync for every answer would.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::account::{Account, Unit};

const FORMAT: u32 = 1;

#[derive(Debug, Deserialize, Serialize)]
struct File {
    format: u32,
    budgets: BTreeMap<String, Spent>,
}

#[derive(Debug, Deserialize, Serialize)]
struct Spent {
    unit: Unit,
    window_start_s: i64,
    spent_parts: i64,
}

/// Reads the file into the accounts. A budget that counts something else than it did, or whose
/// window is over, begins anew; a file that is not there is an empty one.
///
/// # Errors
/// A file that cannot be read or is none of ours: the operator decides, since forgetting it
/// would be giving money away.
pub fn read(path: &Path, accounts: &mut [Account]) -> Result<(), String> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(format!("cannot read {}: {e}", path.display())),
    };
    let unusable = |what: String| {
        format!(
            "{} (budgets.spendings_file) {what}; mend it, or remove it to begin with nothing spent",
            path.display()
        )
    };
    let file: File = serde_json::from_str(&text).map_err(|e| unusable(e.to_string()))?;
    if file.format != FORMAT {
        let what = format!("has format {}, this host reads {FORMAT}", file.format);
        return Err(unusable(what));
    }
    for account in accounts {
        if let Some(spent) = file.budgets.get(&account.name)
            && spent.unit == account.unit
            && spent.window_start_s == account.window.start_s
        {
            account.remember(spent.spent_parts);
        }
    }
    Ok(())
}

/// What the file says of these accounts.
pub fn text(accounts: &[Account]) -> String {
    let spent = accounts.iter().map(|account| {
        let spent = Spent {
            unit: account.unit,
            window_start_s: account.window.start_s,
            spent_parts: account.spent(),
        };
        (account.name.clone(), spent)
    });
    let file = File {
        format: FORMAT,
        budgets: spent.collect(),
    };
    serde_json::to_string_pretty(&file).expect("numbers and words serialise")
}
