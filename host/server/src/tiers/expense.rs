//! Who pays for what policies ask models.
//!
//! A request pays for what its own policies ask, for as long as their session lives, also when
//! its answer is sent: the energy stands on its receipt, and its budgets pay for it as they do for
//! an answer. What nobody's request pays (a shadow, a probe) is the host's own, and no client's
//! debt. It refuses to limit what is asked: a policy's deadline and grants do.

use std::sync::Arc;

use homeostat_hooks::TierView;

use crate::budgets::{Budgets, Purse};
use crate::energy::{Encoding, Energy, Questions};

/// The books in which questions of policies stand.
pub struct Books {
    energy: Arc<Energy>,
    budgets: Arc<Budgets>,
    of_host: Arc<Expense>,
}

impl Books {
    pub fn new(energy: &Arc<Energy>, budgets: &Arc<Budgets>) -> Self {
        Self {
            energy: energy.clone(),
            budgets: budgets.clone(),
            of_host: Arc::new(Expense::OfHost(energy.clone())),
        }
    }

    /// What is nobody's request's.
    pub fn of_host(&self) -> Arc<Expense> {
        self.of_host.clone()
    }

    /// What this job pays, from now on until it is dropped by all who hold it.
    pub fn of_job(&self, job_id: &str) -> Arc<Expense> {
        Arc::new(Expense::OfJob {
            questions: self.energy.questions_of(job_id),
            purse: self.budgets.purse_in_use(job_id),
        })
    }
}

/// At whose expense something is asked.
pub enum Expense {
    OfHost(Arc<Energy>),
    OfJob {
        questions: Questions,
        /// `None` = no budget pays for it.
        purse: Option<Arc<Purse>>,
    },
}

impl Expense {
    /// The account on which an engine is to compute; 0 is nobody's request's.
    pub fn account(&self) -> u64 {
        match self {
            Self::OfHost(_) => 0,
            Self::OfJob { questions, .. } => questions.account(),
        }
    }

    /// An encoder computes from now on, until what is returned is ended or dropped.
    pub fn begin_encoding(&self) -> Encoding {
        match self {
            Self::OfHost(energy) => energy.begin_encoding(),
            Self::OfJob { questions, .. } => questions.begin_encoding(),
        }
    }

    /// Something was asked: of which model, and how many tokens it has read and written. Called
    /// where somebody wants to know.
    pub fn was_asked(&self, what: impl FnOnce() -> (TierView, [u32; 2])) {
        if let Self::OfJob {
            purse: Some(purse), ..
        } = self
        {
            let (model, tokens) = what();
            purse.was_asked(&model, tokens);
        }
    }
}
