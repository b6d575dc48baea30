//! The life of one request, read from top to bottom.
//!
//! Each request is one task. The caller holds the receiving end of its messages; when the
//! caller goes away the task notices, drops the tier's stream (which cancels the
//! generation) and still closes its record.

mod stream;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::StreamExt;
use homeostat_hooks::{
    Answer, AnsweredBy, Assessment, Attribute, BudgetUnit, Decision, DirectAnswer, Fault,
    FaultKind, Finish, Hook, HookReply, Outcome, Plan, Policies, Sample, Session, Snapshot, Step,
    TierView, Value, Verdict, builtin,
};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::job::{Closing, Head, Job, Refused, Reply, ReplyEvent, Usage};
use crate::posterior::{self, Course, InHand};
use crate::record::{CutBy, DecisionRecord, Ending, Records, RequestSummary, StepRecord};
use crate::surprisal::Baselines;
use crate::tier::{
    GenerateCall, Prompt, Tier, TierError, TierEvent, TierFault, Token, TokenStream,
};
use crate::view;

/// Somebody who is told of every closed record.
pub type Observer = Arc<dyn Fn(&DecisionRecord) + Send + Sync>;
/// What a job of this id has used, as far as somebody keeps books.
pub type JoulesOf = Arc<dyn Fn(&str) -> Option<Sample> + Send + Sync>;

/// Attribute of an answer, a number.
const FIRST_TOKEN_ENTROPY: &str = "homeostat.first-token-entropy";

/// Limits of this room.
pub struct CascadeConfig {
    /// Message text that a policy is shown. 64 KiB: every classifier of today reads less,
    /// and a copy of it costs microseconds.
    pub view_bytes_max: usize,
    /// Records kept for `explain`. 1,024 at a few KiB each.
    pub records_max: usize,
    /// Events that may wait for a slow reader before its generation has to wait. 256 is
    /// the longest answer most clients ask for.
    pub events_waiting_max: usize,
    /// Called with every closed record: metrics, logs.
    pub observer: Option<Observer>,
    /// Asked once for every job that is over, for policies that learn.
    pub joules_of: Option<JoulesOf>,
    /// What is usual for the tiers, as far as an earlier life has learned it.
    pub baselines: Arc<Baselines>,
}

impl Default for CascadeConfig {
    fn default() -> Self {
        Self {
            view_bytes_max: 64 * 1024,
            records_max: 1024,
            events_waiting_max: 256,
            observer: None,
            joules_of: None,
            baselines: Arc::default(),
        }
    }
}

/// All a request needs on its way. Shared by all of them.
pub struct Cascade {
    policies: Arc<dyn Policies>,
    tiers: Vec<Arc<dyn Tier>>,
    snapshots: Arc<dyn Fn() -> Arc<Snapshot> + Send + Sync>,
    config: CascadeConfig,
    records: Records,
    baselines: Arc<Baselines>,
}

/// What a request's task tells its caller. The first message is `Head` or `Refused`.
enum Message {
    Head(Head),
    Refused(Refused),
    Event(ReplyEvent),
}

impl Cascade {
    /// A cascade over these tiers. Ids must be unique.
    ///
    /// # Panics
    /// When two tiers share an id: a wiring error of the server.
    pub fn new(
        policies: Arc<dyn Policies>,
        mut tiers: Vec<Arc<dyn Tier>>,
        snapshots: Arc<dyn Fn() -> Arc<Snapshot> + Send + Sync>,
        config: CascadeConfig,
    ) -> Self {
        tiers.sort_by_key(|t| t.view().rank);
        for (i, tier) in tiers.iter().enumerate() {
            let twice = tiers[i + 1..].iter().any(|t| t.id() == tier.id());
            assert!(!twice, "two tiers are called {:?}", tier.id());
        }
        let records = Records::new(config.records_max);
        let baselines = config.baselines.clone();
        Self {
            policies,
            tiers,
            snapshots,
            config,
            records,
            baselines,
        }
    }

    /// The tiers, smallest first.
    pub fn tiers(&self) -> &[Arc<dyn Tier>] {
        &self.tiers
    }

    /// The story of a request.
    pub fn record(&self, id: &str) -> Option<Arc<DecisionRecord>> {
        self.records.get(id)
    }

    /// The last stories, newest first.
    pub fn recent(&self, count: usize) -> Vec<Arc<DecisionRecord>> {
        self.records.recent(count)
    }

    /// Serve a request. Returns when the first text is known, or the refusal. Dropping
    /// the future or the reply cancels it.
    pub async fn run(self: &Arc<Self>, job: Job) -> Result<Reply, Refused> {
        let (client, mut messages) = mpsc::channel(self.config.events_waiting_max);
        let life = Life::begin(self.clone(), job, client.clone())?;
        tokio::spawn(life.run(client));
        match messages.recv().await {
            Some(Message::Head(head)) => {
                let events = futures::stream::poll_fn(move |cx| messages.poll_recv(cx));
                let events = events.filter_map(|m| async {
                    match m {
                        Message::Event(event) => Some(event),
                        Message::Head(_) | Message::Refused(_) => None,
                    }
                });
                Ok(Reply {
                    head,
                    events: events.boxed(),
                })
            }
            Some(Message::Refused(refused)) => Err(refused),
            // The task ended without a word: it panicked, and the panic is in the log.
            Some(Message::Event(_)) | None => {
                Err(TierError::host("internal_error", "the host failed on this request").into())
            }
        }
    }

    /// A record that is closed.
    fn written(&self, record: DecisionRecord) {
        let record = Arc::new(record);
        if let Some(observer) = &self.config.observer {
            observer(&record);
        }
        self.records.put(record);
    }

    fn candidates(&self, model: &str) -> Result<Vec<TierView>, Refused> {
        let all = self.tiers.iter().map(|t| t.view());
        if model == "auto" {
            return Ok(all.collect());
        }
        let named: Vec<TierView> = all.filter(|t| t.id == model).collect();
        if named.is_empty() {
            let known = self.tiers.iter().map(|t| t.id().to_owned()).collect();
            return Err(Refused::UnknownModel {
                name: model.to_owned(),
                known,
            });
        }
        Ok(named)
    }
}

/// An answer, or as much of it as there is.
struct Held {
    /// Which of the steps that were tried, as in the record.
    step: usize,
    /// Which step of the plan.
    place: usize,
    /// Bytes of text that the client had seen when the step began: it goes on from there.
    begins_at: usize,
    tokens: Vec<Token>,
    /// How many of them the client has.
    sent: usize,
    finish: Finish,
    confidence: Option<f32>,
    /// What its tier still says; `None` when it is over. Dropping it cancels the generation.
    rest: Option<TokenStream>,
}

impl Held {
    fn text_from(&self, token: usize) -> String {
        let texts = self.tokens[token..].iter().map(|t| t.text.as_str());
        texts.collect()
    }
}

/// How the client comes by the answer of a step.
enum Manner {
    /// Token by token: nothing can follow.
    Live,
    /// Token by token, but for the newest: the next step could go on.
    Behind,
    /// When it was found good.
    Whole,
}

/// What became of one step.
enum Attempt {
    Sent,
    Escalate(Held),
    Failed(TierError),
}

/// What the policies were asked so far, as a receipt.
struct Written {
    session: Box<dyn Session>,
    receipt: Option<String>,
}

struct Life {
    cascade: Arc<Cascade>,
    /// `None` once the client has everything: what is dropped ends its stream.
    client: Option<mpsc::Sender<Message>>,
    begun: Instant,
    job: Job,
    prompt: Arc<Prompt>,
    /// `None` only while a hook runs on another thread.
    session: Option<Box<dyn Session>>,
    record: DecisionRecord,
    confidence: Option<f32>,
    receipt: Option<String>,
    /// The receipt is being made, while the first tier works; it has the session.
    writing: Option<tokio::task::JoinHandle<Written>>,
    /// From here on a failure can only end the stream.
    head_sent: bool,
    /// All text that the client has, and its tokens.
    seen: String,
    seen_tokens: u32,
    /// The best answer that was left, for as long as nothing of a later one was sent.
    best: Option<Held>,
    /// What the last step that was left would have said next.
    hint: String,
    /// A question about a part of an answer; it has the session.
    asking: Option<tokio::task::JoinHandle<stream::Asked>>,
    /// A live answer that is sent and not yet validated.
    unjudged: Option<(Step, Held)>,
}

impl Life {
    fn begin(
        cascade: Arc<Cascade>,
        job: Job,
        client: mpsc::Sender<Message>,
    ) -> Result<Self, Refused> {
        let mut tiers = cascade.candidates(&job.model)?;
        let mut snapshot = (cascade.snapshots)();
        if let Some(purse) = &job.purse {
            let payable = purse.open(tiers).map_err(|rejection| {
                let refused = Refused::Policy(rejection);
                // Anew: most requests can be paid, and need no copy.
                let tiers = cascade.candidates(&job.model).unwrap_or_default();
                let mut record = open_record(&job, snapshot.clone(), tiers);
                record.ending = Ending::Refused {
                    message: refused.to_string(),
                };
                cascade.written(record);
                refused
            })?;
            tiers = payable.tiers;
            // Those of the snapshot are older and know no tenant; power is no purse.
            let budgets = &mut Arc::make_mut(&mut snapshot).budgets;
            budgets.retain(|budget| budget.unit == BudgetUnit::Watts);
            budgets.extend(payable.budgets);
        }
        let request = Arc::new(view::of(&job, cascade.config.view_bytes_max));
        let session = cascade.policies.begin(request, snapshot.clone());
        let record = open_record(&job, snapshot, tiers);
        let prompt = Arc::new(job.prompt.clone());
        Ok(Self {
            cascade,
            client: Some(client),
            begun: Instant::now(),
            job,
            prompt,
            session: Some(session),
            record,
            confidence: None,
            receipt: None,
            writing: None,
            head_sent: false,
            seen: String::new(),
            seen_tokens: 0,
            best: None,
            hint: String::new(),
            asking: None,
            unjudged: None,
        })
    }

    async fn run(mut self, client: mpsc::Sender<Message>) {
        let deadline = self.deadline();
        let result = tokio::select! {
            biased;
            () = client.closed() => {
                self.record.ending = Ending::Cancelled;
                Ok(())
            }
            () = expires(deadline) => Err(self.expired().into()),
            result = self.serve() => result,
        };
        // What was begun and is not sent ends here.
        self.best = None;
        if let Err(refused) = result {
            self.refuse(refused).await;
        }
        drop(client);
        // Too late to change the answer; the verdict is for the record and for policies
        // that learn. Neither the client's leaving nor its deadline matters any more.
        if let Some((step, held)) = self.unjudged.take() {
            let answer = self.answer(&step, 0, &held);
            let verdict = self.validate(held.step, answer).await;
            self.learn_surprisal(&step, &held, &verdict);
            self.confidence = confidence_of(&verdict);
        }
        self.close().await;
    }

    /// The whole life on one screen.
    async fn serve(&mut self) -> Result<(), Refused> {
        let decision = match self.decide().await {
            Decision::Answer(answer) if !self.job.output.admits(&answer.text) => {
                self.plan_instead(&answer)
            }
            decision => decision,
        };
        match decision {
            Decision::Reject(rejection) => Err(Refused::Policy(rejection)),
            Decision::Answer(answer) => self.answer_directly(answer).await,
            Decision::Plan(plan) => self.climb(plan).await,
        }
    }

    /// Classify and route, in one hop to a thread that may block.
    async fn decide(&mut self) -> Decision {
        let tiers = self.record.tiers.clone();
        let (classification, decision, has_receipt) = self
            .ask(move |session| {
                let classification = session.classify();
                let decision = session.route(&classification.value, &tiers);
                (classification, decision, session.has_receipt())
            })
            .await;
        if has_receipt {
            self.write_receipt();
        }
        let value = decision.value.clone();
        self.record.classification = Some(classification);
        self.record.decision = Some(decision);
        value
    }

    /// Begins the receipt. It is wanted with the head of the answer, which no tier sends sooner.
    fn write_receipt(&mut self) {
        let session = self
            .session
            .take()
            .expect("one hook at a time holds the session");
        self.writing = Some(tokio::task::spawn_blocking(move || Written {
            receipt: session.receipt(),
            session,
        }));
    }

    /// Takes the receipt, and the session back.
    async fn take_receipt(&mut self) {
        if let Some(writing) = &mut self.writing {
            // As in `ask`.
            let written = writing.await.expect("a session never panics");
            self.writing = None;
            self.receipt = written.receipt;
            self.session = Some(written.session);
        }
    }

    /// A direct answer in another form than the client asked for is no answer: the built-in policy
    /// plans instead.
    fn plan_instead(&mut self, answer: &DirectAnswer) -> Decision {
        let (Some(classification), Some(reply)) =
            (&self.record.classification, &mut self.record.decision)
        else {
            unreachable!("decisions are made from classifications and recorded");
        };
        let decision = builtin::route(
            &classification.value,
            &self.record.tiers,
            &self.record.snapshot,
        );
        let what = format!(
            "the direct answer of {} is not in the form asked for",
            answer.method
        );
        reply.fault = Some(Fault::new(FaultKind::Invalid, what));
        reply.value = decision.clone();
        if let AnsweredBy::Component {
            name,
            generation,
            candidate,
            ..
        } = &reply.by
        {
            reply.by = AnsweredBy::Fallback {
                name: name.clone(),
                generation: *generation,
                fallback: "built-in".into(),
                candidate: *candidate,
            };
        }
        decision
    }

    async fn answer_directly(&mut self, answer: DirectAnswer) -> Result<(), Refused> {
        self.record.ending = Ending::Direct {
            method: answer.method.clone(),
        };
        self.send_head("direct", Some(answer.method)).await;
        self.send_text(Token {
            text: answer.text,
            ..Token::default()
        })
        .await;
        self.send_end(Finish::Stop).await;
        Ok(())
    }

    /// Step after step, until an answer is sent. When the tiers that should have done
    /// better fail, or are no longer worth asking, the best answer in hand is sent after all.
    async fn climb(&mut self, plan: Plan) -> Result<(), Refused> {
        let mut error = None;
        let mut course = Course::of((0..plan.steps.len()).collect());
        while let Some(place) = course.next.pop_front() {
            let next = course.next.front().map(|next| &plan.steps[*next]);
            let later = (next, course.next.len());
            match self.attempt(place, &plan.steps[place], later).await? {
                Attempt::Sent => return Ok(()),
                Attempt::Escalate(held) => {
                    error = None;
                    course = self.weigh_again(&plan, held, course.next);
                }
                Attempt::Failed(e) if e.is_final() && !self.head_sent && self.best.is_none() => {
                    return Err(e.into());
                }
                Attempt::Failed(e) => {
                    error = Some(e);
                    course.after_a_failure();
                }
            }
        }
        let Some(held) = self.best.take() else {
            let empty = || TierError::host("internal_error", "the plan was empty");
            return Err(error.unwrap_or_else(empty).into());
        };
        if let Some(e) = error {
            let note = format!("an earlier answer was sent, since a later step failed: {e}");
            self.record.notes.push(note);
        }
        let step = &plan.steps[held.place];
        match self.send_held(step, held).await {
            Attempt::Failed(e) => Err(e.into()),
            Attempt::Sent | Attempt::Escalate(_) => Ok(()),
        }
    }

    /// Of two answers that were left the one that is thought better is kept.
    fn keep(&mut self, held: Held) {
        let better = |best: &Held| held.confidence >= best.confidence;
        if self.best.as_ref().is_none_or(better) {
            self.best = Some(held);
        }
    }

    /// An answer was left: what of the plan is still worth a try, by what was measured of the best
    /// one and by the machine as it is now.
    fn weigh_again(&mut self, plan: &Plan, left: Held, later: VecDeque<usize>) -> Course {
        self.keep(left);
        let Some(best) = &self.best else {
            return Course::of(later);
        };
        let hand = InHand {
            place: best.place,
            confidence: best.confidence,
        };
        let then = &self.record.snapshot.metabolism;
        let now = (self.cascade.snapshots)().metabolism;
        let mut course = posterior::weigh(plan, later, &hand, &self.record.tiers, then, &now);
        self.record.notes.extend(course.note.take());
        course
    }

    /// One step: generate, then to the client as far as no later step could do better: the one
    /// that would be next, or those that are left.
    async fn attempt(
        &mut self,
        place: usize,
        step: &Step,
        (next_step, steps_left): (Option<&Step>, usize),
    ) -> Result<Attempt, Refused> {
        if self.tokens_left() == Some(0) {
            self.send_end(Finish::Length).await;
            return Ok(Attempt::Sent);
        }
        let index = self.record.steps.len();
        let opened = open_step(step, self.elapsed_ms(), self.seen_tokens);
        self.record.steps.push(opened);
        let rest = match self.start(step).await {
            Ok(rest) => rest,
            Err(error) => return Ok(self.step_failed(index, error)),
        };
        let mut held = Held {
            step: index,
            place,
            begins_at: self.seen.len(),
            tokens: Vec::new(),
            sent: 0,
            finish: Finish::Unfinished,
            confidence: None,
            rest: Some(rest),
        };
        match self.manner(step, next_step) {
            Manner::Live => return Ok(self.stream_live(step, held).await),
            Manner::Behind => return self.stream_behind(step, steps_left, held).await,
            Manner::Whole => {}
        }
        loop {
            match next(&mut held.rest).await {
                Err(error) => return Ok(self.broke(held, error)),
                Ok(event) => {
                    if !self.take(&mut held, event) {
                        return self.judge(step, steps_left, held).await;
                    }
                }
            }
        }
    }

    /// New tokens that the client still wants.
    fn tokens_left(&self) -> Option<u32> {
        let wanted = self.job.max_tokens?;
        Some(wanted.saturating_sub(self.seen_tokens))
    }

    async fn start(&mut self, step: &Step) -> Result<TokenStream, TierError> {
        // `check::decision` has made sure that the tier exists.
        let tier = self.cascade.tiers.iter().find(|t| t.id() == step.tier);
        let tier = tier.ok_or_else(|| TierError::host("internal_error", "the tier is gone"))?;
        // Its device may have been lost since the plan was made. Without an answer in hand the tier
        // says so itself.
        if self.best.is_some() && !tier.view().ready {
            return Err(TierError::not_ready(&step.tier));
        }
        if !self.seen.is_empty() && !tier.can_continue(&self.prompt) {
            let why = "it is used only while the client has seen nothing";
            return Err(TierError::cannot_continue(&step.tier, why));
        }
        let max_tokens = match (step.max_tokens, self.tokens_left()) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        let call = GenerateCall {
            request_id: self.job.id.clone(),
            prompt: self.prompt.clone(),
            sampling: self.job.sampling.clone(),
            max_tokens,
            max_draft_tokens: step.max_draft_tokens,
            output: self.job.output.clone(),
            answer_prefix: self.seen.clone(),
            draft_hint: self.hint.clone(),
            sharer: self.job.sharer.clone(),
            priority: self.job.priority,
            time_left: self
                .deadline()
                .map(|d| d.saturating_sub(self.begun.elapsed())),
        };
        let Some(purse) = &self.job.purse else {
            return tier.generate(call).await;
        };
        purse.begin(&step.tier)?;
        purse.clone().pay(&step.tier, tier.generate(call)).await
    }

    /// The verdict on a whole answer, and what follows from it.
    async fn judge(
        &mut self,
        step: &Step,
        steps_left: usize,
        held: Held,
    ) -> Result<Attempt, Refused> {
        let answer = self.answer(step, steps_left, &held);
        let verdict = self.validate(held.step, answer).await;
        self.learn_surprisal(step, &held, &verdict);
        self.act_on(verdict, held, step, steps_left).await
    }

    async fn validate(&mut self, step: usize, answer: Answer) -> Verdict {
        let reply = self.ask(move |session| session.validate(&answer)).await;
        let verdict = reply.value.clone();
        self.record.steps[step].verdict = Some(reply);
        verdict
    }

    /// What a validator is shown: all text of the answer, and what this step's tier thought of its
    /// own part.
    fn answer(&self, step: &Step, steps_left: usize, held: &Held) -> Answer {
        Answer {
            step: held.place as u32,
            steps_left: steps_left as u32,
            tier: step.tier.clone(),
            text: format!("{}{}", &self.seen[..held.begins_at], held.text_from(0)),
            finish: held.finish,
            logprobs: held.tokens.iter().map_while(|t| t.logprob).collect(),
            accept_threshold: step.accept_threshold,
            attributes: first_entropy(held).into_iter().collect(),
        }
    }

    async fn act_on(
        &mut self,
        verdict: Verdict,
        mut held: Held,
        step: &Step,
        steps_left: usize,
    ) -> Result<Attempt, Refused> {
        held.confidence = confidence_of(&verdict);
        match verdict {
            Verdict::Escalate(doubt) if steps_left > 0 => {
                let why = reasons(&doubt, step.accept_threshold);
                return Ok(self.cut(held, CutBy::Validator, why));
            }
            Verdict::Reject(rejection) => return Err(Refused::Policy(rejection)),
            Verdict::Amend(amendment) if !self.job.output.admits(&amendment.text) => {
                let note = "the validator's amendment is not in the form asked for: not sent";
                self.record.notes.push(note.into());
            }
            Verdict::Amend(amendment) => {
                let note = match amendment.text.strip_prefix(self.seen.as_str()) {
                    Some(new) => {
                        held.tokens = vec![Token {
                            text: new.to_owned(),
                            ..Token::default()
                        }];
                        held.sent = 0;
                        "the validator amended the answer"
                    }
                    None => "the validator's amendment changes what the client has seen: not sent",
                };
                self.record.notes.push(note.into());
            }
            Verdict::Accept(_) | Verdict::Escalate(_) | Verdict::Undecided => {}
        }
        Ok(self.send_held(step, held).await)
    }

    /// Ask the session something on a thread that may block.
    async fn ask<T, F>(&mut self, question: F) -> T
    where
        T: Send + 'static,
        F: FnOnce(&mut dyn Session) -> T + Send + 'static,
    {
        self.settle().await;
        let mut session = self
            .session
            .take()
            .expect("one hook at a time holds the session");
        let asked = tokio::task::spawn_blocking(move || {
            let value = question(session.as_mut());
            (session, value)
        });
        // Policies turn every failure into a fault, so a panic here is a bug of the host;
        // it ends this request and no other.
        let (session, value) = asked.await.expect("a session never panics");
        self.session = Some(session);
        value
    }

    // ---- what the client is told ---------------------------------------------

    async fn send(&mut self, message: Message) {
        // A client that is gone is noticed by `run`.
        if let Some(client) = &self.client {
            let _ = client.send(message).await;
        }
    }

    async fn send_head(&mut self, tier: &str, method: Option<String>) {
        self.take_receipt().await;
        let mut policies = Vec::new();
        let mut add = |hook, by: Option<&AnsweredBy>| {
            policies.extend(by.map(|by| (hook, by.clone())));
        };
        add(
            Hook::Classify,
            self.record.classification.as_ref().map(|r| &r.by),
        );
        add(Hook::Route, self.record.decision.as_ref().map(|r| &r.by));
        let verdicts = self
            .record
            .steps
            .iter()
            .rev()
            .find_map(|s| s.verdict.as_ref());
        add(Hook::Validate, verdicts.map(|r| &r.by));
        let head = Head {
            request_id: self.job.id.clone(),
            tier: tier.to_owned(),
            method,
            receipt: self.receipt.clone(),
            policies,
            fallback: self.record.fallback(),
            escalations: self.record.steps.len().saturating_sub(1) as u32,
        };
        self.head_sent = true;
        self.send(Message::Head(head)).await;
    }

    async fn send_text(&mut self, token: Token) {
        if self.record.ttft_ms.is_none() && !token.text.is_empty() {
            self.record.ttft_ms = Some(self.elapsed_ms());
        }
        self.seen.push_str(&token.text);
        self.seen_tokens += 1;
        self.send(Message::Event(ReplyEvent::Token(token))).await;
    }

    async fn send_end(&mut self, finish: Finish) {
        let tier = match &self.record.ending {
            Ending::Sent { tier, .. } => tier.clone(),
            _ => "direct".into(),
        };
        let steps = &self.record.steps;
        let closing = Closing {
            tier,
            escalations: steps.len().saturating_sub(1) as u32,
            cuts: steps.iter().filter_map(|s| s.cut.clone()).collect(),
        };
        let usage = self.record.usage;
        self.send(Message::Event(ReplyEvent::Finished {
            finish,
            usage,
            closing,
        }))
        .await;
    }

    /// What is not sent yet of an answer, and what its tier still says.
    async fn send_held(&mut self, step: &Step, mut held: Held) -> Attempt {
        self.confidence = held.confidence;
        // Taken up again: nothing of it is dropped.
        self.record.steps[held.step].cut = None;
        if held.rest.is_some() {
            self.hint.clear();
            return self.stream_live(step, held).await;
        }
        let end = held.tokens.len();
        self.release(&mut held, end).await;
        self.send_end(held.finish).await;
        Attempt::Sent
    }

    async fn refuse(&mut self, refused: Refused) {
        let message = refused.to_string();
        self.record.ending = match &refused {
            Refused::Tier(_) if self.head_sent => Ending::Failed { message },
            _ => Ending::Refused { message },
        };
        let message = match refused {
            refused if self.head_sent => {
                Message::Event(ReplyEvent::Failed(stream::broken_off(refused)))
            }
            refused => Message::Refused(refused),
        };
        self.send(message).await;
    }

    // ---- what is written down ------------------------------------------------

    fn deadline(&self) -> Option<Duration> {
        let ms = self.job.deadline_ms;
        ms.map(|ms| Duration::from_millis(ms.into()))
    }

    fn elapsed_ms(&self) -> u32 {
        u32::try_from(self.begun.elapsed().as_millis()).unwrap_or(u32::MAX)
    }

    fn expired(&self) -> TierError {
        TierError {
            fault: TierFault::Tier,
            code: "deadline_exceeded",
            message: format!("no answer within the {} ms asked for", self.elapsed_ms()),
            retryable: true,
            retry_after_ms: None,
        }
    }

    fn mark_sent(&mut self, step: usize) {
        let sent = &mut self.record.steps[step];
        sent.sent = true;
        self.record.ending = Ending::Sent {
            tier: sent.tier.clone(),
            step: step as u32,
        };
        self.count_usage(step);
    }

    /// What an answer went on from is a part of the answer, whoever wrote it, though the tier that
    /// goes on counts it as prompt.
    fn count_usage(&mut self, step: usize) {
        let step = &self.record.steps[step];
        let usage = &mut self.record.usage;
        usage.prompt_tokens = step.prompt_tokens.saturating_sub(step.continued_tokens);
        usage.completion_tokens = step.continued_tokens + step.completion_tokens;
    }

    fn note_token(&mut self, step: usize) {
        let elapsed = self.elapsed_ms();
        let step = &mut self.record.steps[step];
        step.ttft_ms.get_or_insert(elapsed - step.started_ms);
    }

    /// Writes down what there is of an answer, which has so many tokens by its tier's count.
    fn note_answer(&mut self, held: &Held, completion_tokens: u32) {
        let elapsed = self.elapsed_ms();
        let step = &mut self.record.steps[held.step];
        let new_tokens = completion_tokens - step.completion_tokens.min(completion_tokens);
        self.record.usage.generated_tokens_all_steps += new_tokens;
        step.total_ms = elapsed - step.started_ms;
        step.completion_tokens = completion_tokens;
        step.bytes = held.tokens.iter().map(|t| t.text.len()).sum();
        step.mean_logprob = mean(held.tokens.iter().map_while(|t| t.logprob));
        step.finish = Some(held.finish);
    }

    fn note_end(&mut self, held: &Held, prompt_tokens: u32, completion_tokens: u32) {
        self.note_answer(held, completion_tokens);
        let (earlier, this) = self.record.steps.split_at_mut(held.step);
        this[0].prompt_tokens = prompt_tokens;
        let text = held.text_from(0);
        let same = text.bytes().zip(self.hint.bytes());
        if !self.hint.is_empty()
            && let Some(cut) = earlier.iter_mut().rev().find_map(|s| s.cut.as_mut())
        {
            cut.repeated_bytes = Some(same.take_while(|(a, b)| a == b).count());
        }
        if this[0].sent {
            self.count_usage(held.step);
        }
    }

    fn step_failed(&mut self, step: usize, error: TierError) -> Attempt {
        let elapsed = self.elapsed_ms();
        let step = &mut self.record.steps[step];
        step.total_ms = elapsed - step.started_ms;
        step.error = Some(error.clone());
        Attempt::Failed(error)
    }

    /// Close the record, then tell policies that learn.
    async fn close(mut self) {
        self.record.total_ms = self.elapsed_ms();
        self.cascade.written(self.record.clone());
        self.client = None;
        let outcome = self.outcome();
        if self.session.is_some() || self.asking.is_some() || self.writing.is_some() {
            self.ask(move |session| session.learn(&outcome)).await;
        }
    }

    fn outcome(&self) -> Outcome {
        let tier = match &self.record.ending {
            Ending::Sent { tier, .. } => Some(tier.clone()),
            _ => None,
        };
        Outcome {
            tier,
            steps_tried: self.record.steps.len() as u32,
            confidence: self.confidence,
            prompt_tokens: self.record.usage.prompt_tokens,
            generated_tokens: self.record.usage.generated_tokens_all_steps,
            ttft_ms: self.record.ttft_ms,
            total_ms: self.record.total_ms,
            joules: self
                .cascade
                .config
                .joules_of
                .as_ref()
                .and_then(|of| of(&self.record.id)),
        }
    }
}

async fn expires(after: Option<Duration>) {
    match after {
        Some(after) => tokio::time::sleep(after).await,
        None => std::future::pending().await,
    }
}

async fn next(tokens: &mut Option<TokenStream>) -> Result<TierEvent, TierError> {
    let event = match tokens {
        Some(tokens) => tokens.next().await,
        None => None,
    };
    event.unwrap_or_else(|| {
        Err(TierError {
            fault: TierFault::Tier,
            code: "incomplete_answer",
            message: "the tier ended its answer without saying why".into(),
            retryable: true,
            retry_after_ms: None,
        })
    })
}

fn confidence_of(verdict: &Verdict) -> Option<f32> {
    match verdict {
        Verdict::Accept(a) | Verdict::Escalate(a) => Some(a.confidence),
        Verdict::Amend(a) => Some(a.assessment.confidence),
        Verdict::Reject(_) | Verdict::Undecided => None,
    }
}

/// How unsure its tier was at the beginning of its own part, in nats.
fn first_entropy(held: &Held) -> Option<Attribute> {
    let entropy = held.tokens.first()?.entropy.filter(|e| e.is_finite())?;
    Some((
        FIRST_TOKEN_ENTROPY.to_owned(),
        Value::Number(entropy.into()),
    ))
}

fn mean(values: impl Iterator<Item = f32>) -> Option<f32> {
    let (mut sum, mut count) = (0.0, 0u32);
    for value in values {
        sum += value;
        count += 1;
    }
    (count > 0).then(|| sum / count as f32)
}

/// What a validator found wrong, in a line.
fn reasons(doubt: &Assessment, threshold: f32) -> String {
    let failed = doubt.findings.iter().filter(|f| !f.passed);
    let failed: Vec<String> = failed
        .map(|f| format!("{}: {}", f.check, f.detail))
        .collect();
    match failed.is_empty() {
        true => format!(
            "confidence {:.2}, accepted from {threshold:.2}",
            doubt.confidence
        ),
        false => failed.join("; "),
    }
}

fn open_step(step: &Step, started_ms: u32, continued_tokens: u32) -> StepRecord {
    StepRecord {
        tier: step.tier.clone(),
        started_ms,
        ttft_ms: None,
        total_ms: 0,
        prompt_tokens: 0,
        completion_tokens: 0,
        bytes: 0,
        mean_logprob: None,
        finish: None,
        verdict: None::<HookReply<Verdict>>,
        error: None,
        sent: false,
        continued_tokens,
        partial_verdicts: Vec::new(),
        cut: None,
    }
}

fn open_record(job: &Job, snapshot: Arc<Snapshot>, tiers: Vec<TierView>) -> DecisionRecord {
    let (messages, bytes) = match &job.prompt {
        Prompt::Chat(m) => (m.len(), m.iter().map(|m| m.content.len()).sum()),
        Prompt::Raw(text) => (1, text.len()),
    };
    let unix = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    DecisionRecord {
        id: job.id.clone(),
        unix_ms: u64::try_from(unix.as_millis()).unwrap_or(u64::MAX),
        request: RequestSummary {
            endpoint: job.endpoint,
            model: job.model.clone(),
            messages,
            bytes,
            stream: job.stream,
            max_tokens: job.max_tokens,
            temperature: job.sampling.temperature,
            response_format: job.output.response_format(),
            tenant: job.tenant.clone(),
        },
        snapshot,
        tiers,
        classification: None,
        decision: None,
        steps: Vec::new(),
        ending: Ending::Running,
        notes: Vec::new(),
        usage: Usage::default(),
        ttft_ms: None,
        total_ms: 0,
    }
}
