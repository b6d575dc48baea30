//! What one job has reserved, from before policies decide until its last step is over.
//!
//! It is open while anybody holds it: the request's life, or the stream of one of its steps.
//! Whoever lets go last, and for whatever reason (an end, a client that left, a panic), hands
//! it back to the budgets.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use futures::{FutureExt, Stream, StreamExt};
use homeostat_cascade::{
    Begun, Payable, Purse as CascadePurse, TierError, TierEvent, TierFault, TokenStream,
};
use homeostat_hooks::{Rejection, TierView};

use super::price::{Step, Terms};
use super::{Budgets, Over};

/// What a job may spend.
pub struct Purse {
    budgets: Arc<Budgets>,
    /// Those that pay, by their place.
    pub(super) accounts: Vec<usize>,
    job_id: String,
    /// Expected.
    pub(super) prompt_tokens: u32,
    pub(super) max_tokens: Option<u32>,
    bill: Mutex<Bill>,
}

#[derive(Debug, Default)]
struct Bill {
    /// The candidates, with what an answer of each is expected to cost every account. Fixed
    /// when the purse is opened: what could be paid then still can.
    offers: Vec<(Terms, Vec<i64>)>,
    /// From every account.
    reserved: Vec<i64>,
    steps: Vec<Step>,
    /// What policies asked models.
    asked: Vec<Step>,
}

impl std::fmt::Debug for Purse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = f.debug_struct("Purse");
        shown.field("job_id", &self.job_id);
        shown.field("bill", &self.bill()).finish_non_exhaustive()
    }
}

impl Purse {
    /// `tokens`: expected of the prompt, and the most of an answer.
    pub(super) fn new(
        budgets: Arc<Budgets>,
        accounts: Vec<usize>,
        job_id: &str,
        tokens: (u32, Option<u32>),
    ) -> Self {
        let reserved = vec![0; accounts.len()];
        Self {
            budgets,
            accounts,
            job_id: job_id.to_owned(),
            prompt_tokens: tokens.0,
            max_tokens: tokens.1,
            bill: Mutex::new(Bill {
                reserved,
                ..Bill::default()
            }),
        }
    }

    /// Names of the budgets that pay.
    pub fn paid_by(&self) -> Vec<String> {
        self.budgets.names(&self.accounts)
    }

    /// An encoder that was to be paid has read so many tokens, and that is all.
    pub fn has_read(&self, encoder: &str, tokens: u32) {
        let mut bill = self.bill();
        if let Some(terms) = bill.terms(encoder) {
            bill.steps.push(Step {
                terms,
                prompt_tokens: tokens,
                output_tokens: 0,
                finished: true,
            });
        }
    }

    /// A policy has asked a model of this host, whether it is a candidate or not: of the prompt
    /// and of what it wrote so many tokens.
    pub fn was_asked(&self, model: &TierView, [prompt_tokens, output_tokens]: [u32; 2]) {
        self.bill().asked.push(Step {
            terms: Terms::of(model),
            prompt_tokens,
            output_tokens,
            finished: false,
        });
    }

    /// Always before the books, never after.
    fn bill(&self) -> MutexGuard<'_, Bill> {
        self.bill.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Bill {
    /// Of a candidate that could be paid.
    fn terms(&self, tier: &str) -> Option<Terms> {
        let mut offers = self.offers.iter().map(|(terms, _)| terms);
        offers.find(|terms| terms.tier == tier).cloned()
    }
}

impl CascadePurse for Purse {
    fn open(&self, candidates: Vec<TierView>) -> Result<Payable, Rejection> {
        let now_s = self.budgets.now_s();
        let mut bill = self.bill();
        let mut books = self.budgets.books(now_s);
        let budgets = self.accounts.iter().map(|i| books.accounts[*i].view(now_s));
        let budgets = budgets.collect();
        let (mut tiers, mut lack) = (Vec::new(), None);
        let mut dearest = vec![0; self.accounts.len()];
        for view in candidates {
            let terms = Terms::of(&view);
            let costs = books.expected_costs(self, &terms, now_s);
            if let Some(lacking) = books.lacking(&self.accounts, &costs) {
                lack.get_or_insert((lacking, view.id));
                continue;
            }
            for (most, cost) in dearest.iter_mut().zip(&costs) {
                *most = (*most).max(*cost);
            }
            bill.offers.push((terms, costs));
            tiers.push(view);
        }
        if let (true, Some((lacking, tier))) = (tiers.is_empty(), lack) {
            return Err(books.refuse(lacking, &tier, now_s));
        }
        for (at, most) in self.accounts.iter().zip(&dearest) {
            books.accounts[*at].reserve(*most);
        }
        bill.reserved = dearest;
        Ok(Payable { tiers, budgets })
    }

    fn begin(&self, tier: &str) -> Result<(), TierError> {
        let now_s = self.budgets.now_s();
        let mut bill = self.bill();
        let offer = bill.offers.iter().find(|(terms, _)| terms.tier == tier);
        let (_, costs) = offer.ok_or_else(|| {
            let what = format!("the tier {tier} is none of those that were to be paid");
            TierError::host("internal_error", what)
        })?;
        let mut books = self.budgets.books(now_s);
        let done = books.by_tokens(&bill.steps) + books.by_tokens(&bill.asked);
        let owed = books.costs(&self.accounts, done, now_s);
        let needed: Vec<i64> = owed.iter().zip(costs).map(|(a, b)| a + b).collect();
        let more = needed
            .iter()
            .zip(&bill.reserved)
            .map(|(a, b)| (a - b).max(0));
        let more: Vec<i64> = more.collect();
        let short = |(at, more): &(&usize, &i64)| **more > books.accounts[**at].left().max(0);
        if let Some((at, more)) = self.accounts.iter().zip(&more).find(short) {
            let rejection = books.refuse((*at, *more), tier, now_s);
            return Err(TierError {
                fault: TierFault::Tier,
                code: "budget_exhausted",
                message: rejection.message,
                retryable: true,
                retry_after_ms: rejection.retry_after_ms,
            });
        }
        for ((at, more), (needed, reserved)) in self
            .accounts
            .iter()
            .zip(more)
            .zip(needed.iter().zip(&bill.reserved))
        {
            books.accounts[*at].reserve(more);
            books.accounts[*at].give_back((reserved - needed).max(0));
        }
        bill.reserved = needed;
        Ok(())
    }

    fn pay(self: Arc<Self>, tier: &str, begun: Begun) -> Begun {
        let mut bill = self.bill();
        let Some(terms) = bill.terms(tier) else {
            return begun;
        };
        let index = bill.steps.len();
        // At once: the next step may begin while this one still runs, and is paid beside it.
        bill.steps.push(Step {
            terms,
            prompt_tokens: self.prompt_tokens,
            output_tokens: 0,
            finished: false,
        });
        drop(bill);
        async move {
            match begun.await {
                Ok(tokens) => Ok(Counted {
                    purse: self,
                    index,
                    tokens,
                }
                .boxed()),
                Err(error) => {
                    // The last one: no other begins before a tier has answered.
                    self.bill().steps.truncate(index);
                    Err(error)
                }
            }
        }
        .boxed()
    }
}

impl Drop for Purse {
    fn drop(&mut self) {
        let bill = std::mem::take(&mut *self.bill());
        let job_id = std::mem::take(&mut self.job_id);
        self.budgets.has_closed(&job_id);
        self.budgets.over(Over {
            job_id,
            reserved: self.accounts.iter().copied().zip(bill.reserved).collect(),
            steps: bill.steps,
            asked: bill.asked,
            since_s: self.budgets.now_s(),
        });
    }
}

/// A step whose tokens pass.
struct Counted {
    purse: Arc<Purse>,
    /// Of the step in the bill.
    index: usize,
    tokens: TokenStream,
}

impl Stream for Counted {
    type Item = Result<TierEvent, TierError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let event = self.tokens.poll_next_unpin(cx);
        if let Poll::Ready(Some(Ok(event))) = &event {
            let mut bill = self.purse.bill();
            let step = &mut bill.steps[self.index];
            match event {
                TierEvent::Token(_) => step.output_tokens += 1,
                TierEvent::Finished {
                    prompt_tokens,
                    completion_tokens,
                    ..
                } => {
                    step.prompt_tokens = *prompt_tokens;
                    step.output_tokens = *completion_tokens;
                    step.finished = true;
                }
            }
        }
        event
    }
}
