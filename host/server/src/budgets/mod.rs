//! Budgets in joules, dollars or grams of CO2 for the host, a tenant or a key.
//!
//! ```text
//! reserve what it may cost ─► keep what the chosen tier may cost ─► settle what it has cost
//!   before policies decide        before every step                   with the receipt
//! ```
//!
//! The host keeps three promises, whatever the router does: a tier that a budget cannot pay
//! is no candidate, so a nearly spent budget leads to smaller tiers; only when none can be
//! paid is a request refused, with the time at which it may come again; and a request pays
//! what its receipt says, however late that comes. How much is left is told to policies, who
//! may save earlier.
//!
//! Amounts are whole parts and add up at every moment ([`account`]). Nothing here waits, and
//! time and receipts come from outside. What policies ask models themselves cannot be known before:
//! it is reserved by nobody, and paid like the answer.

mod account;
mod price;
mod purse;
mod settings;
mod spendings;
#[cfg(test)]
mod tests;
mod window;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use homeostat_cascade::{Job, Prompt};
use homeostat_hooks::{Budget, Refusal, Rejection};
use serde::Serialize;

pub use self::account::Unit;
use self::account::{Account, Owner};
pub use self::price::Taken;
use self::price::{Curves, Expectations, Step, Terms, Work, tokens_of};
pub use self::purse::Purse;
pub use self::settings::BudgetsConfig;
pub use self::window::Per;
use crate::house::digest;

/// How long after a request its receipt is waited for. The ledger gives a silent sensor five
/// seconds; what is not settled then has no receipt, and its tokens tell what it cost.
const RECEIPT_PATIENCE_S: i64 = 10;
/// When to try again where nothing but what others have reserved is in the way.
const RESERVED_RETRY_MS: u32 = 1_000;

/// Seconds since 1970.
pub type Clock = Box<dyn Fn() -> i64 + Send + Sync>;
/// What the receipt of an answer says so far, by the id of its job.
pub type Receipts = Box<dyn Fn(&str) -> Option<Taken> + Send + Sync>;

/// All budgets of this host.
pub struct Budgets {
    books: Mutex<Books>,
    /// By the ids of their jobs.
    open: Mutex<HashMap<String, Weak<Purse>>>,
    clock: Clock,
    /// `None` where no energy is booked.
    receipts: Option<Receipts>,
    spendings_file: Option<PathBuf>,
    utc_offset_s: i64,
}

struct Books {
    /// In the order of their names.
    accounts: Vec<Account>,
    curves: Curves,
    expected: Expectations,
    /// Requests that are over and have no receipt yet.
    waiting: Vec<Over>,
    changed: bool,
    saved_s: i64,
}

/// A request that is over.
struct Over {
    job_id: String,
    /// The accounts that pay, with what each has reserved.
    reserved: Vec<(usize, i64)>,
    steps: Vec<Step>,
    /// What policies asked models for it.
    asked: Vec<Step>,
    since_s: i64,
}

/// A budget as operators see it, in its unit.
#[derive(Debug, Clone, Serialize)]
pub struct BudgetStatus {
    pub name: String,
    pub scope: String,
    pub unit: Unit,
    pub per: Per,
    pub limit: f64,
    pub spent: f64,
    /// For requests that run or wait for their receipt.
    pub reserved: f64,
    /// Below zero when requests turned out dearer than expected.
    pub left: f64,
    /// Requests refused for want of it, since the start.
    pub refused: u64,
    /// When it is whole again, seconds since 1970.
    pub renews_unix_s: i64,
}

impl Budgets {
    /// The budgets of a configuration, with what an earlier run has spent in this window.
    ///
    /// # Errors
    /// A file of spendings that cannot be used; it says what to do.
    pub fn open(
        config: &BudgetsConfig,
        spendings_file: Option<PathBuf>,
        receipts: Option<Receipts>,
        clock: Clock,
    ) -> Result<Self, String> {
        let (now_s, utc_offset_s) = (clock(), config.utc_offset_s());
        let limits = config.limits.iter();
        let mut accounts: Vec<Account> = limits
            .map(|(name, l)| {
                let owner = match (&l.tenant, &l.key) {
                    (_, Some(key)) => Owner::Key(digest(key)),
                    (Some(tenant), None) => Owner::Tenant(tenant.clone()),
                    (None, None) => Owner::Host,
                };
                let window = l.per.window(now_s, utc_offset_s);
                Account::new(name, owner, l.unit, l.limit, l.per, window)
            })
            .collect();
        let spendings_file = spendings_file.filter(|_| !accounts.is_empty());
        if let Some(file) = &spendings_file {
            spendings::read(file, &mut accounts)?;
        }
        Ok(Self {
            books: Mutex::new(Books {
                accounts,
                curves: Curves::new(config),
                expected: Expectations::default(),
                waiting: Vec::new(),
                changed: false,
                saved_s: now_s,
            }),
            open: Mutex::default(),
            clock,
            receipts,
            spendings_file,
            utc_offset_s,
        })
    }

    /// What pays for a job: the host's budgets, its tenant's, its key's; `None` where there is
    /// none. Nothing is reserved yet.
    pub fn purse(self: &Arc<Self>, job: &Job, key: Option<&str>) -> Option<Arc<Purse>> {
        let bytes = match &job.prompt {
            Prompt::Chat(messages) => messages.iter().map(|m| m.content.len()).sum(),
            Prompt::Raw(text) => text.len(),
        };
        let tokens = (tokens_of(bytes), job.max_tokens);
        self.purse_of(&job.id, (job.tenant.as_deref(), key), tokens)
    }

    /// What pays for texts of so many bytes that an encoder reads, which writes nothing; by the
    /// id of the request, its tenant and its key.
    pub fn purse_of_texts(
        self: &Arc<Self>,
        id: &str,
        payer: (Option<&str>, Option<&str>),
        bytes: usize,
    ) -> Option<Arc<Purse>> {
        self.purse_of(id, payer, (tokens_of(bytes), Some(0)))
    }

    fn purse_of(
        self: &Arc<Self>,
        id: &str,
        (tenant, key): (Option<&str>, Option<&str>),
        tokens: (u32, Option<u32>),
    ) -> Option<Arc<Purse>> {
        let books = self.books(self.now_s());
        if books.accounts.is_empty() {
            return None;
        }
        let key = key.map(digest);
        let pays = |account: &Account| match &account.owner {
            Owner::Host => true,
            Owner::Tenant(owner) => tenant == Some(owner.as_str()),
            Owner::Key(digest) => key.as_ref() == Some(digest),
        };
        let accounts = books.accounts.iter().enumerate();
        let accounts: Vec<usize> = accounts.filter(|(_, a)| pays(a)).map(|(i, _)| i).collect();
        if accounts.is_empty() {
            return None;
        }
        drop(books);
        let purse = Arc::new(Purse::new(self.clone(), accounts, id, tokens));
        self.open_purses()
            .insert(id.to_owned(), Arc::downgrade(&purse));
        Some(purse)
    }

    /// What pays for this job, for as long as somebody holds it: its policies pay from it, too.
    pub fn purse_in_use(&self, job_id: &str) -> Option<Arc<Purse>> {
        self.open_purses().get(job_id).and_then(Weak::upgrade)
    }

    /// The purse of this job is gone, unless there is another one by now.
    fn has_closed(&self, job_id: &str) {
        let mut open = self.open_purses();
        let gone = |purse: &Weak<Purse>| purse.strong_count() == 0;
        if open.get(job_id).is_some_and(gone) {
            open.remove(job_id);
        }
    }

    /// Nothing is left half done under this lock, and no other is taken.
    fn open_purses(&self) -> MutexGuard<'_, HashMap<String, Weak<Purse>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Names of the budgets that pay from a purse.
    fn names(&self, accounts: &[usize]) -> Vec<String> {
        let books = self.books(self.now_s());
        let names = accounts.iter().map(|i| books.accounts[*i].name.clone());
        names.collect()
    }

    /// The host's own budgets, which say something about the host to its state machine. Without
    /// what is reserved, which comes and goes: what is spent tells how fast it goes down.
    pub fn of_host(&self) -> Vec<Budget> {
        let now_s = self.now_s();
        let books = self.books(now_s);
        let own = books.accounts.iter().filter(|a| a.owner == Owner::Host);
        own.map(|account| Budget {
            used: account.unit.amount(account.spent()),
            ..account.view(now_s)
        })
        .collect()
    }

    /// Every budget, by name.
    pub fn status(&self) -> Vec<BudgetStatus> {
        let books = self.books(self.now_s());
        books.accounts.iter().map(status).collect()
    }

    /// Changes a limit. The next request sees it; a restart reads the file again.
    ///
    /// # Errors
    /// What is wrong with the limit.
    pub fn set_limit(&self, name: &str, limit: f64) -> Result<BudgetStatus, Refused> {
        let mut books = self.books(self.now_s());
        let known = || books.accounts.iter().map(|a| a.name.clone()).collect();
        let Some(at) = books.accounts.iter().position(|a| a.name == name) else {
            return Err(Refused::Unknown(known()));
        };
        let account = &mut books.accounts[at];
        if !(0.0..=account.unit.max()).contains(&limit) {
            return Err(Refused::Limit(account.unit.max()));
        }
        account.set_limit(limit);
        Ok(status(account))
    }

    /// Settles what has its receipt by now or will have none, and writes what was spent: to be
    /// called several times a second.
    pub fn tick(&self) {
        let now_s = self.now_s();
        self.settle_waiting(|over, receipt| {
            receipt.is_none() && now_s - over.since_s > RECEIPT_PATIENCE_S
        });
        if self.books(now_s).saved_s != now_s {
            self.save(now_s);
        }
    }

    /// The last word before the host leaves: what waits is settled by what is known.
    pub fn close(&self) {
        self.settle_waiting(|_, _| true);
        self.save(self.now_s());
    }

    /// `gives_up` says of whom nothing better will be known.
    fn settle_waiting(&self, gives_up: impl Fn(&Over, Option<Taken>) -> bool) {
        let now_s = self.now_s();
        let waiting = std::mem::take(&mut self.books(now_s).waiting);
        // The ledger is asked while nobody has to wait for the budgets.
        let receipts: Vec<_> = waiting.iter().map(|over| self.receipt(over)).collect();
        let mut books = self.books(now_s);
        for (over, receipt) in waiting.into_iter().zip(receipts) {
            match receipt.is_some_and(|r| r.settled) || gives_up(&over, receipt) {
                true => books.settle(&over, receipt, now_s),
                false => books.waiting.push(over),
            }
        }
    }

    fn receipt(&self, over: &Over) -> Option<Taken> {
        self.receipts.as_ref().and_then(|of| of(&over.job_id))
    }

    /// Writes what was spent, if it changed. No request waits for the disk.
    fn save(&self, now_s: i64) {
        let mut books = self.books(now_s);
        books.saved_s = now_s;
        let changed = std::mem::take(&mut books.changed);
        let Some(file) = self.spendings_file.as_ref().filter(|_| changed) else {
            return;
        };
        let text = spendings::text(&books.accounts);
        drop(books);
        if let Err(error) = crate::state_file::replace(file, &text) {
            let file = file.display();
            tracing::warn!(%error, "cannot write {file}: a restart would forget what is spent");
            self.books(now_s).changed = true;
        }
    }

    /// Takes a request that is over. One for which no model of this host worked needs no receipt.
    fn over(&self, over: Over) {
        let now_s = over.since_s;
        let local = over.steps.iter().any(|step| step.terms.local) || !over.asked.is_empty();
        let has_receipt = self.receipts.is_some() && local;
        let mut books = self.books(now_s);
        match has_receipt {
            true => books.waiting.push(over),
            false => books.settle(&over, None, now_s),
        }
    }

    fn now_s(&self) -> i64 {
        (self.clock)()
    }

    /// The books, in the windows of this moment. They stay whole between two changes.
    fn books(&self, now_s: i64) -> MutexGuard<'_, Books> {
        let mut books = self.books.lock().unwrap_or_else(PoisonError::into_inner);
        let books_now = &mut *books;
        for account in &mut books_now.accounts {
            // A clock that is set back ends no window.
            if now_s >= account.window.end_s {
                account.renew(account.per.window(now_s, self.utc_offset_s));
                books_now.changed = true;
            }
        }
        books
    }
}

/// Why a limit was not changed.
#[derive(Debug, Clone, PartialEq)]
pub enum Refused {
    /// There is no such budget, but there are these.
    Unknown(Vec<String>),
    /// Outside of 0 to this.
    Limit(f64),
}

impl Books {
    /// What a work costs each of these accounts.
    fn costs(&self, accounts: &[usize], work: Work, now_s: i64) -> Vec<i64> {
        let unit = |i: &usize| self.accounts[*i].unit;
        let parts = |i| self.curves.parts(unit(i), work, now_s);
        accounts.iter().map(parts).collect()
    }

    /// What an answer is expected to cost each of these accounts.
    fn expected_costs(&self, purse: &Purse, terms: &Terms, now_s: i64) -> Vec<i64> {
        let (prompt, max) = (purse.prompt_tokens, purse.max_tokens);
        let work = self.expected.answer(terms, prompt, max);
        self.costs(&purse.accounts, work, now_s)
    }

    /// The first of these accounts that cannot pay, and what is asked of it.
    fn lacking(&self, accounts: &[usize], costs: &[i64]) -> Option<(usize, i64)> {
        let asked = accounts.iter().copied().zip(costs.iter().copied());
        let mut asked = asked.filter(|(i, cost)| !self.accounts[*i].can_pay(*cost));
        asked.next()
    }

    /// Counts a refusal and words it.
    fn refuse(&mut self, (at, cost): (usize, i64), tier: &str, now_s: i64) -> Rejection {
        let account = &mut self.accounts[at];
        account.refused += 1;
        let (unit, word) = (account.unit, account.unit.word());
        let renews_s = (account.window.end_s - now_s).max(1);
        // What others do not use of their reservations is soon back.
        let unspent = account.limit() - account.spent();
        let soon = unspent > 0 && cost <= unspent;
        let reserved = match account.reserved() {
            0 => String::new(),
            parts => format!(
                ", {} {word} are reserved by running requests",
                shown(unit, parts)
            ),
        };
        Rejection {
            kind: Refusal::BudgetExhausted,
            message: format!(
                "the budget {} has {} of {} {word} left for this {}, and an answer of the tier \
                 {tier} is expected to take {} {word}{reserved}; it is whole again in {}",
                account.name,
                shown(unit, account.left()),
                shown(unit, account.limit()),
                account.per.word(),
                shown(unit, cost),
                duration(renews_s),
            ),
            retry_after_ms: Some(match soon {
                true => RESERVED_RETRY_MS,
                false => u32::try_from(renews_s.saturating_mul(1_000)).unwrap_or(u32::MAX),
            }),
        }
    }

    fn settle(&mut self, over: &Over, receipt: Option<Taken>, now_s: i64) {
        let work = match receipt {
            Some(receipt) => self.expected.settled(&over.steps, &over.asked, receipt),
            None => self.by_tokens(&over.steps) + self.by_tokens(&over.asked),
        };
        let accounts: Vec<usize> = over.reserved.iter().map(|(at, _)| *at).collect();
        let costs = self.costs(&accounts, work, now_s);
        for ((at, reserved), cost) in over.reserved.iter().zip(costs) {
            self.accounts[*at].settle(*reserved, cost);
            self.changed |= cost > 0;
        }
        self.expected.learn(&over.steps, receipt);
    }

    /// What steps cost, as far as their tokens tell.
    fn by_tokens(&self, steps: &[Step]) -> Work {
        let each = steps.iter().map(|step| self.expected.step(step));
        each.fold(Work::default(), |a, b| a + b)
    }
}

fn status(account: &Account) -> BudgetStatus {
    let amount = |parts| account.unit.amount(parts);
    BudgetStatus {
        name: account.name.clone(),
        scope: account.owner.scope().to_string(),
        unit: account.unit,
        per: account.per,
        limit: amount(account.limit()),
        spent: amount(account.spent()),
        reserved: amount(account.reserved()),
        left: amount(account.left()),
        refused: account.refused,
        renews_unix_s: account.window.end_s,
    }
}

/// An amount with four figures that count.
fn shown(unit: Unit, parts: i64) -> String {
    let amount = unit.amount(parts);
    let figures = match amount.abs() {
        a if a > 0.0 => (3 - a.log10().floor() as i32).clamp(0, 9) as usize,
        _ => 0,
    };
    format!("{amount:.figures$}")
}

/// `5 h 12 min`.
fn duration(seconds: i64) -> String {
    match (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, minutes) => format!("{minutes} min"),
        (0, hours, minutes) => format!("{hours} h {minutes} min"),
        (days, hours, _) => format!("{days} d {hours} h"),
    }
}
