//! What a policy is shown of a request: all of it when it is short, both ends of the
//! text when it is long. Copying a megabyte into a sandbox would cost more than the
//! whole decision.

use homeostat_hooks::{Message, Request, Role, Value};

use crate::job::Job;
use crate::tier::{OutputFormat, Prompt};

/// The request as policies see it, with at most `limit` bytes of message text. The
/// newest messages are kept whole for as long as they fit; the one that does not fit is
/// cut in its middle; older ones keep their role and lose their text.
pub(crate) fn of(job: &Job, limit: usize) -> Request {
    let mut messages = match &job.prompt {
        Prompt::Chat(messages) => messages.clone(),
        Prompt::Raw(text) => vec![Message {
            role: Role::User,
            content: text.clone(),
        }],
    };
    let mut left = limit;
    let mut cut_bytes = 0u64;
    for message in messages.iter_mut().rev() {
        let before = message.content.len();
        if before > left {
            message.content = both_ends(&message.content, left);
            cut_bytes += (before - message.content.len()) as u64;
        }
        left -= message.content.len();
    }
    let mut attributes = job.attributes.clone();
    attributes.extend(shape(&job.output).map(|(name, text)| (name.into(), Value::Text(text))));
    Request {
        id: job.id.clone(),
        endpoint: job.endpoint,
        model: job.model.clone(),
        messages,
        cut_bytes,
        max_tokens: job.max_tokens,
        temperature: job.sampling.temperature,
        response_format: job.output.response_format(),
        stream: job.stream,
        tenant: job.tenant.clone(),
        deadline_ms: job.deadline_ms,
        attributes,
    }
}

/// What policies are told about a form for which their contract has no word.
fn shape(output: &OutputFormat) -> Option<(&'static str, String)> {
    match output {
        OutputFormat::Text | OutputFormat::JsonObject => None,
        OutputFormat::JsonSchema { schema, .. } => {
            Some(("homeostat.json-schema", schema.to_string()))
        }
        OutputFormat::Regex(_) => Some(("homeostat.output", "regex".into())),
        OutputFormat::Grammar(_) => Some(("homeostat.output", "grammar".into())),
        OutputFormat::Choice(_) => Some(("homeostat.output", "choice".into())),
    }
}

/// At most `limit` bytes: the beginning and the end, never half a character.
fn both_ends(text: &str, limit: usize) -> String {
    let mut head = limit / 2;
    while !text.is_char_boundary(head) {
        head -= 1;
    }
    let mut tail = text.len() - (limit - head).min(text.len());
    while !text.is_char_boundary(tail) {
        tail += 1;
    }
    format!("{}{}", &text[..head], &text[tail..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_lose_their_middle_and_never_half_a_character() {
        let text = "aé".repeat(1000);
        for limit in 0..64 {
            let cut = both_ends(&text, limit);
            assert!(cut.len() <= limit, "{limit}: {}", cut.len());
            assert!(cut.len() + 4 >= limit);
        }
        assert!(both_ends("begin …… end", 11).starts_with("begin"));
    }
}
