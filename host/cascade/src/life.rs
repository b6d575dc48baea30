//! The life of one request, read from top to bottom.
//!
//! Each request is one task. The caller holds the receiving end of its messages; when the
//! caller goes away the task notices, drops the tier's stream (which cancels the
//! generation) and still closes its record.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::StreamExt;
use homeostat_hooks::{
    Answer, AnsweredBy, Decision, DirectAnswer, Fault, FaultKind, Finish, Hook, HookReply, Outcome,
    Plan, Policies, Sample, Session, Snapshot, Step, TierView, Verdict, builtin,
};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::job::{Head, Job, Refused, Reply, ReplyEvent, Usage};
use crate::record::{DecisionRecord, Ending, Records, RequestSummary, StepRecord};
use crate::tier::{
    GenerateCall, Prompt, Tier, TierError, TierEvent, TierFault, Token, TokenStream,
};
use crate::view;

/// Somebody who is told of every closed record.
pub type Observer = Arc<dyn Fn(&DecisionRecord) + Send + Sync>;
/// What a job of this id has used, as far as somebody keeps books.
pub type JoulesOf = Arc<dyn Fn(&str) -> Option<Sample> + Send + Sync>;

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
}

impl Default for CascadeConfig {
    fn default() -> Self {
        Self {
            view_bytes_max: 64 * 1024,
            records_max: 1024,
            events_waiting_max: 256,
            observer: None,
            joules_of: None,
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
        Self {
            policies,
            tiers,
            snapshots,
            config,
            records,
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

/// An answer that was finished but not sent.
struct Held {
    step: usize,
    tokens: Vec<Token>,
    finish: Finish,
    confidence: Option<f32>,
}

/// What became of one step.
enum Attempt {
    Sent,
    Escalate(Held),
    Failed(TierError),
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
    /// From here on a failure can only end the stream.
    head_sent: bool,
    /// A live answer that is sent and not yet validated.
    unjudged: Option<(Step, Held)>,
}

impl Life {
    fn begin(
        cascade: Arc<Cascade>,
        job: Job,
        client: mpsc::Sender<Message>,
    ) -> Result<Self, Refused> {
        let tiers = cascade.candidates(&job.model)?;
        let snapshot = (cascade.snapshots)();
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
            head_sent: false,
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
        if let Err(refused) = result {
            self.refuse(refused).await;
        }
        drop(client);
        // Too late to change the answer; the verdict is for the record and for policies
        // that learn. Neither the client's leaving nor its deadline matters any more.
        if let Some((step, held)) = self.unjudged.take() {
            let verdict = self.validate(&step, 0, &held).await;
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
        let (classification, decision, receipt) = self
            .ask(move |session| {
                let classification = session.classify();
                let decision = session.route(&classification.value, &tiers);
                (classification, decision, session.receipt())
            })
            .await;
        self.receipt = receipt;
        let value = decision.value.clone();
        self.record.classification = Some(classification);
        self.record.decision = Some(decision);
        value
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
    /// better fail, the best answer in hand is sent after all.
    async fn climb(&mut self, plan: Plan) -> Result<(), Refused> {
        let mut best: Option<Held> = None;
        let mut error = None;
        for (index, step) in plan.steps.iter().enumerate() {
            let steps_left = plan.steps.len() - index - 1;
            match self.attempt(index, step, steps_left).await? {
                Attempt::Sent => return Ok(()),
                Attempt::Escalate(held) => {
                    if best
                        .as_ref()
                        .is_none_or(|b| held.confidence >= b.confidence)
                    {
                        best = Some(held);
                    }
                }
                Attempt::Failed(e) if e.is_final() => return Err(e.into()),
                Attempt::Failed(e) => error = Some(e),
            }
        }
        match (best, error) {
            (Some(held), error) => {
                if let Some(e) = error {
                    let note =
                        format!("an earlier answer was sent, since a later step failed: {e}");
                    self.record.notes.push(note);
                }
                self.send_held(held).await;
                Ok(())
            }
            (None, Some(e)) => Err(e.into()),
            (None, None) => Err(TierError::host("internal_error", "the plan was empty").into()),
        }
    }

    /// One step: generate, then live to the client, or held back until the verdict.
    async fn attempt(
        &mut self,
        index: usize,
        step: &Step,
        steps_left: usize,
    ) -> Result<Attempt, Refused> {
        self.record.steps.push(open_step(step, self.elapsed_ms()));
        let tokens = match self.start(step).await {
            Ok(tokens) => tokens,
            Err(error) => return Ok(self.step_failed(error)),
        };
        if steps_left == 0 && self.job.stream {
            return Ok(self.stream_live(index, step, tokens).await);
        }
        let held = match self.collect(index, tokens).await {
            Ok(held) => held,
            Err(error) => return Ok(self.step_failed(error)),
        };
        let verdict = self.validate(step, steps_left, &held).await;
        self.act_on(verdict, held, steps_left).await
    }

    async fn start(&mut self, step: &Step) -> Result<TokenStream, TierError> {
        // `check::decision` has made sure that the tier exists.
        let tier = self.cascade.tiers.iter().find(|t| t.id() == step.tier);
        let tier = tier.ok_or_else(|| TierError::host("internal_error", "the tier is gone"))?;
        let max_tokens = match (step.max_tokens, self.job.max_tokens) {
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
            answer_prefix: String::new(),
            sharer: self.job.sharer.clone(),
            priority: self.job.priority,
            time_left: self
                .deadline()
                .map(|d| d.saturating_sub(self.begun.elapsed())),
        };
        tier.generate(call).await
    }

    /// The last step of a stream. Its first token is awaited before the head is sent, so
    /// that a tier which fails at once is still an error with a status.
    async fn stream_live(&mut self, index: usize, step: &Step, mut tokens: TokenStream) -> Attempt {
        let mut held = Held {
            step: index,
            tokens: Vec::new(),
            finish: Finish::Stop,
            confidence: None,
        };
        loop {
            let event = match next(&mut tokens).await {
                Ok(event) => event,
                Err(error) if self.head_sent => {
                    self.step_failed(error.clone());
                    self.record.ending = Ending::Failed {
                        message: error.to_string(),
                    };
                    self.send(Message::Event(ReplyEvent::Failed(error))).await;
                    return Attempt::Sent;
                }
                Err(error) => return self.step_failed(error),
            };
            if !self.head_sent {
                self.mark_sent(index);
                self.send_head(&step.tier, None).await;
            }
            match event {
                TierEvent::Token(token) => {
                    self.note_token();
                    held.tokens.push(token.clone());
                    self.send_text(token).await;
                }
                TierEvent::Finished {
                    finish,
                    prompt_tokens,
                    completion_tokens,
                } => {
                    held.finish = finish;
                    self.note_end(&held, prompt_tokens, completion_tokens);
                    self.send_end(finish).await;
                    self.unjudged = Some((step.clone(), held));
                    return Attempt::Sent;
                }
            }
        }
    }

    async fn collect(&mut self, index: usize, mut tokens: TokenStream) -> Result<Held, TierError> {
        let mut held = Held {
            step: index,
            tokens: Vec::new(),
            finish: Finish::Stop,
            confidence: None,
        };
        loop {
            match next(&mut tokens).await? {
                TierEvent::Token(token) => {
                    self.note_token();
                    held.tokens.push(token);
                }
                TierEvent::Finished {
                    finish,
                    prompt_tokens,
                    completion_tokens,
                } => {
                    held.finish = finish;
                    self.note_end(&held, prompt_tokens, completion_tokens);
                    return Ok(held);
                }
            }
        }
    }

    async fn validate(&mut self, step: &Step, steps_left: usize, held: &Held) -> Verdict {
        let answer = Answer {
            step: held.step as u32,
            steps_left: steps_left as u32,
            tier: step.tier.clone(),
            text: held.tokens.iter().map(|t| t.text.as_str()).collect(),
            finish: held.finish,
            logprobs: held.tokens.iter().map_while(|t| t.logprob).collect(),
            accept_threshold: step.accept_threshold,
            attributes: Vec::new(),
        };
        let reply = self.ask(move |session| session.validate(&answer)).await;
        let verdict = reply.value.clone();
        if let Some(last) = self.record.steps.last_mut() {
            last.verdict = Some(reply);
        }
        verdict
    }

    async fn act_on(
        &mut self,
        verdict: Verdict,
        mut held: Held,
        steps_left: usize,
    ) -> Result<Attempt, Refused> {
        held.confidence = confidence_of(&verdict);
        match verdict {
            Verdict::Escalate(_) if steps_left > 0 => return Ok(Attempt::Escalate(held)),
            Verdict::Reject(rejection) => return Err(Refused::Policy(rejection)),
            Verdict::Amend(amendment) if !self.job.output.admits(&amendment.text) => {
                let note = "the validator's amendment is not in the form asked for: not sent";
                self.record.notes.push(note.into());
            }
            Verdict::Amend(amendment) => {
                held.tokens = vec![Token {
                    text: amendment.text,
                    ..Token::default()
                }];
                self.record
                    .notes
                    .push("the validator amended the answer".into());
            }
            Verdict::Accept(_) | Verdict::Escalate(_) | Verdict::Undecided => {}
        }
        self.send_held(held).await;
        Ok(Attempt::Sent)
    }

    /// Ask the session something on a thread that may block.
    async fn ask<T, F>(&mut self, question: F) -> T
    where
        T: Send + 'static,
        F: FnOnce(&mut dyn Session) -> T + Send + 'static,
    {
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
        self.send(Message::Event(ReplyEvent::Token(token))).await;
    }

    async fn send_end(&mut self, finish: Finish) {
        let usage = self.record.usage;
        self.send(Message::Event(ReplyEvent::Finished { finish, usage }))
            .await;
    }

    async fn send_held(&mut self, held: Held) {
        self.mark_sent(held.step);
        self.confidence = held.confidence;
        let tier = self.record.steps[held.step].tier.clone();
        self.send_head(&tier, None).await;
        for token in held.tokens {
            self.send_text(token).await;
        }
        self.send_end(held.finish).await;
    }

    async fn refuse(&mut self, refused: Refused) {
        self.record.ending = Ending::Refused {
            message: refused.to_string(),
        };
        match refused {
            Refused::Tier(error) if self.head_sent => {
                self.record.ending = Ending::Failed {
                    message: error.to_string(),
                };
                self.send(Message::Event(ReplyEvent::Failed(error))).await;
            }
            refused => self.send(Message::Refused(refused)).await,
        }
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
        self.record.usage.prompt_tokens = sent.prompt_tokens;
        self.record.usage.completion_tokens = sent.completion_tokens;
        self.record.ending = Ending::Sent {
            tier: sent.tier.clone(),
            step: step as u32,
        };
    }

    fn note_token(&mut self) {
        let elapsed = self.elapsed_ms();
        if let Some(step) = self.record.steps.last_mut() {
            step.ttft_ms.get_or_insert(elapsed - step.started_ms);
        }
    }

    fn note_end(&mut self, held: &Held, prompt_tokens: u32, completion_tokens: u32) {
        let elapsed = self.elapsed_ms();
        let usage = &mut self.record.usage;
        usage.generated_tokens_all_steps += completion_tokens;
        let Some(step) = self.record.steps.last_mut() else {
            return;
        };
        step.total_ms = elapsed - step.started_ms;
        step.prompt_tokens = prompt_tokens;
        step.completion_tokens = completion_tokens;
        step.bytes = held.tokens.iter().map(|t| t.text.len()).sum();
        step.mean_logprob = mean(held.tokens.iter().map_while(|t| t.logprob));
        step.finish = Some(held.finish);
        if step.sent {
            usage.prompt_tokens = prompt_tokens;
            usage.completion_tokens = completion_tokens;
        }
    }

    fn step_failed(&mut self, error: TierError) -> Attempt {
        let elapsed = self.elapsed_ms();
        if let Some(step) = self.record.steps.last_mut() {
            step.total_ms = elapsed - step.started_ms;
            step.error = Some(error.clone());
        }
        Attempt::Failed(error)
    }

    /// Close the record, then tell policies that learn.
    async fn close(mut self) {
        self.record.total_ms = self.elapsed_ms();
        let record = Arc::new(self.record.clone());
        if let Some(observer) = &self.cascade.config.observer {
            observer(&record);
        }
        self.cascade.records.put(record);
        self.client = None;
        let outcome = self.outcome();
        if self.session.is_some() {
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

async fn next(tokens: &mut TokenStream) -> Result<TierEvent, TierError> {
    tokens.next().await.unwrap_or_else(|| {
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

fn mean(values: impl Iterator<Item = f32>) -> Option<f32> {
    let (mut sum, mut count) = (0.0, 0u32);
    for value in values {
        sum += value;
        count += 1;
    }
    (count > 0).then(|| sum / count as f32)
}

fn open_step(step: &Step, started_ms: u32) -> StepRecord {
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
