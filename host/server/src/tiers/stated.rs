//! A tier on another machine, whose energy is what its configuration states.
//!
//! It counts the tokens that pass and has them booked: with the last one, or when nobody reads
//! on. Of a tier that was left before it answered nobody knows how much it wrote. It refuses to
//! book what the tier refused, and to guess a rate where none is stated.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use futures::{FutureExt, Stream, StreamExt};
use homeostat_cascade::{GenerateCall, Prompt, Tier, TierError, TierEvent, TokenStream};
use homeostat_hooks::TierView;

use crate::energy::Energy;

/// A remote tier and the books in which its tokens stand.
pub struct StatedTier {
    tier: Arc<dyn Tier>,
    energy: Arc<Energy>,
    /// As the configuration states it, J per token.
    rate: Option<f64>,
}

impl StatedTier {
    pub fn new(tier: Arc<dyn Tier>, energy: Arc<Energy>) -> Self {
        let rate = tier.view().joules_per_token.map(|sample| sample.value);
        Self { tier, energy, rate }
    }
}

impl Tier for StatedTier {
    fn id(&self) -> &str {
        self.tier.id()
    }

    fn view(&self) -> TierView {
        self.tier.view()
    }

    fn can_continue(&self, prompt: &Prompt) -> bool {
        self.tier.can_continue(prompt)
    }

    fn generate(&self, call: GenerateCall) -> BoxFuture<'static, Result<TokenStream, TierError>> {
        let energy = self.energy.clone();
        let job = call.request_id.clone();
        let joules_per_token = self.rate;
        let begun = self.tier.generate(call);
        async move {
            // Before anything is awaited: whoever leaves meanwhile has asked it all the same.
            let mut bill = Bill {
                energy,
                job,
                joules_per_token,
                count: None,
                is_booked: false,
            };
            match begun.await {
                Ok(tokens) => {
                    bill.count = Some(0);
                    Ok(Counted { tokens, bill }.boxed())
                }
                Err(refused) => {
                    bill.is_booked = true;
                    Err(refused)
                }
            }
        }
        .boxed()
    }
}

/// What a tier was asked for, and how much of it is known. It is booked once, at the latest when
/// it is dropped.
struct Bill {
    energy: Arc<Energy>,
    job: String,
    joules_per_token: Option<f64>,
    /// Tokens that have passed; `None` before the tier has answered.
    count: Option<u32>,
    is_booked: bool,
}

impl Bill {
    fn book(&mut self) {
        if !std::mem::replace(&mut self.is_booked, true) {
            let known = self.joules_per_token.zip(self.count);
            let joules = known.map(|(rate, count)| rate * f64::from(count));
            self.energy.took_elsewhere(&self.job, joules);
        }
    }
}

impl Drop for Bill {
    fn drop(&mut self) {
        self.book();
    }
}

/// An answer whose tokens pass.
struct Counted {
    tokens: TokenStream,
    bill: Bill,
}

impl Stream for Counted {
    type Item = Result<TierEvent, TierError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let event = self.tokens.poll_next_unpin(cx);
        match &event {
            Poll::Ready(Some(Ok(TierEvent::Token(_)))) => {
                self.bill.count = self.bill.count.map(|count| count + 1);
            }
            Poll::Ready(Some(Ok(TierEvent::Finished {
                completion_tokens, ..
            }))) => {
                self.bill.count = Some(*completion_tokens);
                // Before anybody hears of the end, and asks what it took.
                self.bill.book();
            }
            _ => {}
        }
        event
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;
    use std::time::Instant;

    use homeostat_cascade::{OutputFormat, Sampling, Token};
    use homeostat_hooks::{Finish, Sample};

    use crate::config::EnergyConfig;

    /// Writes three tokens, or refuses, or never says anything.
    struct Far {
        joules_per_token: Option<f64>,
        refuses: bool,
        is_silent: bool,
    }

    impl Tier for Far {
        fn id(&self) -> &str {
            "far"
        }

        fn view(&self) -> TierView {
            TierView {
                joules_per_token: self.joules_per_token.map(Sample::measured),
                ..TierView::default()
            }
        }

        fn generate(&self, _: GenerateCall) -> BoxFuture<'static, Result<TokenStream, TierError>> {
            let (refuses, is_silent) = (self.refuses, self.is_silent);
            async move {
                if is_silent {
                    std::future::pending::<()>().await;
                }
                if refuses {
                    return Err(TierError::host("queue_full", "come again"));
                }
                let token = |_| Ok(TierEvent::Token(Token::default()));
                let end = TierEvent::Finished {
                    finish: Finish::Stop,
                    prompt_tokens: 9,
                    completion_tokens: 4,
                };
                let tokens = futures::stream::iter(0..3).map(token);
                Ok(tokens.chain(futures::stream::iter([Ok(end)])).boxed())
            }
            .boxed()
        }
    }

    fn call(id: &str) -> GenerateCall {
        GenerateCall {
            request_id: id.into(),
            prompt: Arc::new(Prompt::Raw("x".into())),
            sampling: Sampling::default(),
            max_tokens: None,
            max_draft_tokens: 0,
            output: OutputFormat::Text,
            answer_prefix: String::new(),
            draft_hint: String::new(),
            sharer: None,
            priority: 0,
            time_left: None,
        }
    }

    fn books() -> Arc<Energy> {
        let config = EnergyConfig::default();
        Arc::new(Energy::new(&config, Path::new("/none"), Instant::now()))
    }

    /// What the receipt says after so many events, J.
    fn joules_after(far: Far, events: usize) -> Option<f64> {
        let energy = books();
        let tier = StatedTier::new(Arc::new(far), energy.clone());
        if let Some(Ok(answer)) = tier.generate(call("r")).now_or_never() {
            let read = answer.take(events).for_each(|_| async {});
            read.now_or_never().expect("at once");
        }
        let receipt = energy.receipt("r", 1)?;
        let json = serde_json::to_value(&receipt).expect("numbers and words");
        assert_eq!(json["origin"], "modelled");
        assert_eq!(json["method"], "stated");
        json["joules"].as_f64()
    }

    #[test]
    fn what_a_remote_tier_states_is_booked_for_what_it_wrote() {
        let far = |joules_per_token, refuses| Far {
            joules_per_token,
            refuses,
            is_silent: false,
        };
        // Its end says how many it were: one was no text.
        assert_eq!(joules_after(far(Some(0.5), false), 4), Some(2.0));
        assert_eq!(joules_after(far(Some(0.5), false), 2), Some(1.0));
        assert_eq!(joules_after(far(None, false), 4), None);
        assert_eq!(joules_after(far(Some(0.5), true), 4), None);
    }

    #[test]
    fn a_tier_that_was_left_before_it_answered_makes_the_receipt_incomplete() {
        let energy = books();
        let asked = |is_silent| {
            let far = Far {
                joules_per_token: Some(0.5),
                refuses: false,
                is_silent,
            };
            StatedTier::new(Arc::new(far), energy.clone()).generate(call("r"))
        };
        let answer = asked(false).now_or_never().expect("at once");
        let answer = answer.expect("it does not refuse");
        let read = answer.for_each(|_| async {});
        read.now_or_never().expect("at once");
        let receipt = || serde_json::to_value(energy.receipt("r", 1)).expect("a receipt");
        assert_eq!(receipt()["incomplete"], false);
        // Asked for nothing before it is polled for the first time.
        drop(asked(true));
        assert_eq!(receipt()["incomplete"], false);
        assert!(asked(true).now_or_never().is_none());
        assert_eq!(receipt()["incomplete"], true);
        assert_eq!(receipt()["joules"], 2.0);
    }
}
