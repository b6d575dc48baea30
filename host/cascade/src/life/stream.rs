//! The part of a request's life in which the client already reads.
//!
//! What has left is never taken back, so everything that could be regretted is kept behind: the
//! newest tokens of an answer that a later step may still continue. They are watched by the
//! surprisal of their own tier and by the validator, which is asked on another thread while tokens
//! go on coming: a slow policy makes a verdict late, never a token.

use homeostat_hooks::{HookReply, Session, Step, Verdict};

use super::{Attempt, Held, Life, Manner, next, reasons};
use crate::job::Refused;
use crate::record::{Cut, CutBy};
use crate::tier::{OutputFormat, TierError, TierEvent, TierFault};
use crate::window::Window;

/// The session comes back with its answer.
pub(super) struct Asked {
    step: usize,
    session: Box<dyn Session>,
    reply: HookReply<Verdict>,
}

/// Whatever happens first to an answer in the making.
enum Happened {
    Verdict(Asked),
    Event(Result<TierEvent, TierError>),
}

impl Life {
    /// A form holds for the answer as a whole, and no tier can be given the rest of one.
    pub(super) fn manner(&mut self, step: &Step, next: Option<&Step>) -> Manner {
        let Some(next) = next else {
            return match self.job.stream {
                true => Manner::Live,
                false => Manner::Whole,
            };
        };
        if !self.job.stream || step.hold_back_tokens == 0 {
            return Manner::Whole;
        }
        let tier = self.cascade.tiers.iter().find(|t| t.id() == next.tier);
        let why = if self.job.output != OutputFormat::Text {
            "the form of the answer is given".to_owned()
        } else if tier.is_some_and(|t| t.can_continue(&self.prompt)) {
            return Manner::Behind;
        } else {
            format!("tier {} cannot continue one", next.tier)
        };
        let note = format!("the whole answer of {} was held back: {why}", step.tier);
        self.record.notes.push(note);
        Manner::Whole
    }

    /// The last step of a stream, or an answer that is taken up again. A first token is awaited
    /// before the head is sent, so that a tier which fails at once is still an error with a status.
    pub(super) async fn stream_live(&mut self, step: &Step, mut held: Held) -> Attempt {
        let mut goes_on = true;
        loop {
            let end = held.tokens.len();
            if end > held.sent || !goes_on {
                self.release(&mut held, end).await;
            }
            if !goes_on {
                self.send_end(held.finish).await;
                self.unjudged = Some((step.clone(), held));
                return Attempt::Sent;
            }
            goes_on = match next(&mut held.rest).await {
                Ok(event) => self.take(&mut held, event),
                Err(error) => return self.broke(held, error),
            };
        }
    }

    /// A step that may be left in the middle of its answer: the client follows at a distance.
    pub(super) async fn stream_behind(
        &mut self,
        step: &Step,
        steps_left: usize,
        mut held: Held,
    ) -> Result<Attempt, Refused> {
        let mut window = self.window(step);
        loop {
            let happened = tokio::select! {
                biased;
                asked = answered(&mut self.asking) => Happened::Verdict(asked),
                event = next(&mut held.rest) => Happened::Event(event),
            };
            match happened {
                Happened::Verdict(asked) => {
                    if let Some(why) = self.heard(asked, step, &mut held)? {
                        return Ok(self.cut(held, CutBy::Validator, why));
                    }
                }
                Happened::Event(Err(error)) => return Ok(self.broke(held, error)),
                Happened::Event(Ok(event)) => {
                    if !self.take(&mut held, event) {
                        return self.judge(step, steps_left, held).await;
                    }
                    if let Some(why) = held.tokens.last().and_then(|t| window.take(t)) {
                        return Ok(self.cut(held, CutBy::Surprisal, why));
                    }
                    let end = window.sendable(&self.seen, &held.tokens, held.sent);
                    if end > held.sent {
                        self.release(&mut held, end).await;
                    }
                }
            }
            if self.asking.is_none() && window.is_due(&held.tokens) {
                window.asked(held.tokens.len());
                self.take_receipt().await;
                self.ask_ahead(step, steps_left, &held);
            }
        }
    }

    /// A step that accepts everything is not watched.
    fn window(&self, step: &Step) -> Window {
        let watched = step.accept_threshold > 0.0;
        let cusum = watched.then(|| {
            let baselines = &self.cascade.baselines;
            baselines.watch(&step.tier, self.is_greedy())
        });
        let stops = &self.job.sampling.stop;
        Window::new(step.hold_back_tokens, stops, cusum.flatten())
    }

    fn is_greedy(&self) -> bool {
        self.job.sampling.temperature == 0.0
    }

    /// An answer that is good enough shows what is usual for its tier.
    pub(super) fn learn_surprisal(&self, step: &Step, held: &Held, verdict: &Verdict) {
        // Only free text is watched, and tokens that a form forces say nothing about it.
        if let Verdict::Accept(a) = verdict
            && self.job.output == OutputFormat::Text
            && a.confidence >= step.accept_threshold
        {
            let logprobs = held.tokens.iter().filter_map(|t| t.logprob);
            let baselines = &self.cascade.baselines;
            baselines.learn(&step.tier, self.is_greedy(), logprobs);
        }
    }

    /// Takes an event of a tier into its answer; false when it was the last.
    pub(super) fn take(&mut self, held: &mut Held, event: TierEvent) -> bool {
        match event {
            TierEvent::Token(token) => {
                self.note_token(held.step);
                held.tokens.push(token);
                true
            }
            TierEvent::Finished {
                finish,
                prompt_tokens,
                completion_tokens,
            } => {
                held.finish = finish;
                held.rest = None;
                self.note_end(held, prompt_tokens, completion_tokens);
                false
            }
        }
    }

    /// Lets the client have the answer up to its token `end`. From here on no other answer can be
    /// sent in its place.
    pub(super) async fn release(&mut self, held: &mut Held, end: usize) {
        if !self.record.steps[held.step].sent {
            self.best = None;
            self.mark_sent(held.step);
        }
        if !self.head_sent {
            let tier = self.record.steps[held.step].tier.clone();
            self.send_head(&tier, None).await;
        }
        for token in &held.tokens[held.sent..end] {
            self.send_text(token.clone()).await;
        }
        held.sent = end;
    }

    /// Leaves an answer: what the client has stays, what was held back is dropped, unless all that
    /// follows fails. Its tier goes on until something of the next one is sent, so that it can be
    /// taken up again.
    pub(super) fn cut(&mut self, held: Held, by: CutBy, why: String) -> Attempt {
        if held.rest.is_some() {
            self.note_answer(&held, held.tokens.len() as u32);
        }
        self.note_cut(&held, by, why);
        Attempt::Escalate(held)
    }

    /// A tier failed in the middle of its answer.
    pub(super) fn broke(&mut self, held: Held, error: TierError) -> Attempt {
        if !held.tokens.is_empty() {
            self.note_answer(&held, held.tokens.len() as u32);
            self.record.steps[held.step].finish = None;
            self.note_cut(&held, CutBy::Failure, error.to_string());
        }
        self.step_failed(held.step, error)
    }

    fn note_cut(&mut self, held: &Held, by: CutBy, why: String) {
        let at_ms = self.elapsed_ms();
        let step = &mut self.record.steps[held.step];
        self.hint = held.text_from(held.sent);
        step.cut = Some(Cut {
            tier: step.tier.clone(),
            at_ms,
            by,
            why,
            sent_tokens: held.sent as u32,
            seam_bytes: self.seen.len(),
            dropped_tokens: (held.tokens.len() - held.sent) as u32,
            dropped_bytes: self.hint.len(),
            repeated_bytes: None,
        });
    }

    /// Asks about what there is of an answer, on another thread.
    fn ask_ahead(&mut self, step: &Step, steps_left: usize, held: &Held) {
        let answer = self.answer(step, steps_left, held);
        let index = held.step;
        let mut session = self
            .session
            .take()
            .expect("one hook at a time holds the session");
        self.asking = Some(tokio::task::spawn_blocking(move || {
            let reply = session.validate(&answer);
            Asked {
                step: index,
                session,
                reply,
            }
        }));
    }

    /// Takes the session back, and a verdict that came too late to matter.
    pub(super) async fn settle(&mut self) {
        self.take_receipt().await;
        if self.asking.is_some() {
            let asked = answered(&mut self.asking).await;
            self.asking = None;
            self.session = Some(asked.session);
            let step = &mut self.record.steps[asked.step];
            step.partial_verdicts.push(asked.reply);
        }
    }

    /// The verdict on a part of an answer: why it should be left, if it should.
    fn heard(
        &mut self,
        asked: Asked,
        step: &Step,
        held: &mut Held,
    ) -> Result<Option<String>, Refused> {
        self.asking = None;
        self.session = Some(asked.session);
        let record = &mut self.record.steps[held.step];
        let follows = match &asked.reply.value {
            Verdict::Escalate(doubt) => {
                held.confidence = Some(doubt.confidence);
                Ok(Some(reasons(doubt, step.accept_threshold)))
            }
            Verdict::Reject(rejection) => Err(Refused::Policy(rejection.clone())),
            // A part cannot be replaced, and what is good so far may still go wrong.
            Verdict::Accept(_) | Verdict::Amend(_) | Verdict::Undecided => {
                record.partial_verdicts.push(asked.reply);
                return Ok(None);
            }
        };
        record.verdict = Some(asked.reply);
        follows
    }
}

/// The answer to what is being asked; never, if nothing is.
async fn answered(asking: &mut Option<tokio::task::JoinHandle<Asked>>) -> Asked {
    match asking {
        // Policies turn every failure into a fault, so a panic here is a bug of the host; it ends
        // this request and no other.
        Some(asking) => asking.await.expect("a session never panics"),
        None => std::future::pending().await,
    }
}

/// What ends a stream whose beginning was sent.
pub(super) fn broken_off(refused: Refused) -> TierError {
    let retry_after_ms = match &refused {
        Refused::Policy(rejection) => rejection.retry_after_ms,
        Refused::Tier(_) | Refused::UnknownModel { .. } => None,
    };
    match refused {
        Refused::Tier(error) => error,
        refused => TierError {
            fault: TierFault::Tier,
            code: "answer_rejected",
            message: format!("the rest of the answer is withheld: {refused}"),
            retryable: false,
            retry_after_ms,
        },
    }
}
