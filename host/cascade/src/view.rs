//! What a policy is shown of a request: all of it when it is short, both ends of the
//! text when it is long. Copying a megabyte into a sandbox would cost more than the
//! whole decision.

use std::hash::{DefaultHasher, Hasher};

use homeostat_hooks::{CONVERSATION, Message, Request, Role, Value};

use crate::job::Job;
use crate::tier::{OutputFormat, Prompt};

/// Bytes of a message that a conversation is told by: it is hashed on the way of a request.
const TOLD_BY_BYTES: usize = 4096;

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
    // Before anything is cut: a later turn of a long conversation is still of it.
    let conversation = conversation(&messages);
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
    attributes.push((CONVERSATION.into(), Value::Integer(conversation)));
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

/// What tells this conversation from others: a hash of all messages up to the first of the
/// person, which every turn brings again.
fn conversation(messages: &[Message]) -> i64 {
    let mut hash = DefaultHasher::new();
    for message in messages {
        let text = message.content.as_bytes();
        hash.write_usize(text.len());
        hash.write(&text[..text.len().min(TOLD_BY_BYTES)]);
        if message.role == Role::User {
            break;
        }
    }
    hash.finish().cast_signed()
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

    #[test]
    fn every_turn_of_a_conversation_has_its_number_however_much_is_cut() {
        let view = |turns: &[&str], limit| {
            let roles = [Role::System, Role::User, Role::Assistant];
            let messages = roles.into_iter().chain([Role::User]).zip(turns);
            let messages = messages.map(|(role, text)| Message {
                role,
                content: (*text).into(),
            });
            let job = Job {
                id: "1".into(),
                endpoint: homeostat_hooks::Endpoint::Chat,
                model: "auto".into(),
                prompt: Prompt::Chat(messages.collect()),
                sampling: crate::tier::Sampling::default(),
                max_tokens: None,
                stream: false,
                output: OutputFormat::Text,
                tenant: None,
                sharer: None,
                priority: 0,
                deadline_ms: None,
                attributes: Vec::new(),
                purse: None,
            };
            of(&job, limit)
        };
        let number = |request: &Request| match request.attributes.as_slice() {
            [(name, Value::Integer(number))] if name == CONVERSATION => *number,
            other => panic!("{other:?}"),
        };
        let (first, long) = ("Hi.".repeat(20), "And now?".repeat(20));
        let begun = view(&["Be kind.", &first], 100);
        let later = view(&["Be kind.", &first, "Hello!", &long], 100);
        assert_eq!(later.messages[1].content, "", "the beginning is cut");
        assert_eq!(number(&later), number(&begun));
        let another = view(&["Be kind.", "Hello.", "Hello!", &long], 100);
        assert_ne!(number(&another), number(&begun));
    }
}
