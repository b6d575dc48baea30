//! Which requests are one conversation, and where it was answered.
//!
//! A conversation that changes its tier reads its whole prompt again and meets another voice, so
//! it does so at most once in a dwell time, and the share of traffic that a hot machine sheds is
//! a share of conversations. The name is what the client says (`metadata.conversation`), else
//! the tenant and everything up to the first message of the person, which later turns repeat.
//! Conversations that begin with the same words share a name; so only one that has been answered
//! already has a seat. There are [`SEATS`] of them; who comes to a taken one takes it over.

use std::fmt;

use homeostat_sdk::*;

/// Places for conversations: of a few dozen bytes each.
const SEATS: u64 = 1024;

/// Where a conversation was answered last, and since when.
#[derive(Debug, Clone, PartialEq)]
pub struct Seat {
    name: u64,
    pub(crate) tier: String,
    /// When it last changed its tier; `None` while it has only had one.
    switched_ms: Option<u64>,
}

impl Seat {
    /// This conversation's seat, if nobody else has it.
    pub(crate) fn read(request: &Request, text: impl Fn(&str) -> Option<String>) -> Option<Self> {
        let text = text(&key(request))?;
        let mut words = text.splitn(3, ' ');
        let name = u64::from_str_radix(words.next()?, 16).ok()?;
        let switched_ms = match words.next()? {
            "-" => None,
            at => Some(at.parse().ok()?),
        };
        let tier = words.next()?.to_owned();
        (name == self::name(request)).then_some(Self {
            name,
            tier,
            switched_ms,
        })
    }

    /// How long ago it changed its tier, if that is shorter than `dwell_s`.
    pub(crate) fn switched_s_ago(&self, now_ms: u64, dwell_s: u32) -> Option<u64> {
        // A clock that began anew has forgotten when that was.
        let ago_s = now_ms.checked_sub(self.switched_ms?)? / 1000;
        (ago_s < u64::from(dwell_s)).then_some(ago_s)
    }
}

impl fmt::Display for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x} ", self.name)?;
        match self.switched_ms {
            Some(at) => write!(f, "{at} ")?,
            None => f.write_str("- ")?,
        }
        f.write_str(&self.tier)
    }
}

/// The seat after an answer of `tier`; `None` when it stays what it was.
pub(crate) fn reseated(
    request: &Request,
    before: Option<Seat>,
    tier: &str,
    now_ms: u64,
) -> Option<Seat> {
    let before = before.filter(|_| has_begun(request));
    let switched_ms = match &before {
        Some(seat) if seat.tier == tier => return None,
        Some(_) => Some(now_ms),
        None => None,
    };
    Some(Seat {
        name: name(request),
        tier: tier.to_owned(),
        switched_ms,
    })
}

/// Whether somebody has answered in it already.
pub(crate) fn has_begun(request: &Request) -> bool {
    said(request).is_some() || request.messages.iter().any(|m| m.role == Role::Assistant)
}

pub(crate) fn key(request: &Request) -> String {
    format!("seat.{}", name(request) % SEATS)
}

/// Whether this conversation belongs to a share of all. By its name, so that a replay decides
/// alike, no turn changes sides while the share stands, and a growing share only ever adds.
pub(crate) fn is_among(request: &Request, share: f32) -> bool {
    ((name(request) >> 40) as f32 / (1u64 << 24) as f32) < share
}

/// Whether this id is one of so many that are chosen, the same in every replay.
pub(crate) fn is_one_in(id: &str, many: u64) -> bool {
    mixed(hashed(START, id)).is_multiple_of(many)
}

/// The client's own name for it.
fn said(request: &Request) -> Option<&str> {
    request.attributes.iter().find_map(|(key, value)| {
        let text = match value {
            Value::Text(text) => Some(text.as_str()),
            _ => None,
        };
        text.filter(|_| key == "metadata.conversation")
    })
}

/// The host's number of it.
fn numbered(request: &Request) -> Option<i64> {
    let told = |(key, value): &(String, Value)| match value {
        Value::Integer(number) if key == "homeostat.conversation" => Some(*number),
        _ => None,
    };
    request.attributes.iter().find_map(told)
}

fn name(request: &Request) -> u64 {
    let hash = hashed(START, request.tenant.as_deref().unwrap_or(""));
    mixed(match said(request) {
        Some(name) => hashed(hash, name),
        None if request.messages.is_empty() => hashed(hash, &request.id),
        // The host's number, made before anything was cut.
        None if let Some(number) = numbered(request) => hashed(hash, &number.to_string()),
        None => {
            let first = |m: &&Message| m.role != Role::User;
            let before = request.messages.iter().take_while(first);
            let hash = before.fold(hash, |hash, m| hashed(hash, &m.content));
            let user = request.messages.iter().find(|m| m.role == Role::User);
            hashed(hash, user.map_or("", |m| &m.content))
        }
    })
}

const START: u64 = 0xcbf2_9ce4_8422_2325;

/// Eight bytes at a time: prompts are long.
fn hashed(mut hash: u64, text: &str) -> u64 {
    // The length first: "a" "bc" is not "ab" "c".
    hash = (hash ^ text.len() as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for chunk in text.as_bytes().chunks(8) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        hash = (hash ^ u64::from_le_bytes(word)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        hash ^= hash >> 29;
    }
    hash
}

/// All bits depend on all of them.
fn mixed(mut hash: u64) -> u64 {
    hash ^= hash >> 32;
    hash = hash.wrapping_mul(0xd6e8_feb8_6659_fd93);
    hash ^ (hash >> 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turns(texts: &[(Role, &str)]) -> Request {
        let said = |(role, text): &(Role, &str)| Message {
            role: *role,
            content: (*text).to_owned(),
        };
        Request {
            id: "req-1".into(),
            messages: texts.iter().map(said).collect(),
            ..Request::default()
        }
    }

    const FIRST: (Role, &str) = (Role::User, "Hello!");

    #[test]
    fn later_turns_keep_the_name_and_other_beginnings_tenants_and_names_do_not() {
        let first = turns(&[FIRST]);
        let third = turns(&[FIRST, (Role::Assistant, "Hi."), (Role::User, "And now?")]);
        assert_eq!(name(&first), name(&third));
        assert!(!has_begun(&first) && has_begun(&third));
        let mut others = [
            turns(&[(Role::User, "Hello")]),
            turns(&[(Role::System, "Hello!"), (Role::User, "")]),
            turns(&[FIRST]),
            turns(&[FIRST]),
        ];
        others[2].tenant = Some("team".into());
        others[3].attributes = vec![("metadata.conversation".into(), Value::Text("x".into()))];
        let mut names: Vec<u64> = others.iter().chain([&first]).map(name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), 5);
        assert!(has_begun(&others[3]), "who has a name may go on");
    }

    #[test]
    fn a_share_of_conversations_is_about_that_share_and_grows_by_adding() {
        let asked: Vec<Request> = (0..4000)
            .map(|i| turns(&[(Role::User, &format!("Question number {i}"))]))
            .collect();
        let among = |share: f32| asked.iter().filter(|r| is_among(r, share)).count();
        assert_eq!((among(0.0), among(1.0)), (0, 4000));
        assert!((900..1100).contains(&among(0.25)), "{}", among(0.25));
        assert!(asked.iter().all(|r| !is_among(r, 0.3) || is_among(r, 0.6)));
    }

    #[test]
    fn a_seat_is_written_when_the_tier_changes_and_read_by_its_owner_only() {
        let begun = turns(&[FIRST, (Role::Assistant, "Hi."), (Role::User, "And now?")]);
        let seat = reseated(&begun, None, "small tier", 5).expect("a first seat");
        assert_eq!(
            seat.switched_s_ago(6, 60),
            None,
            "a first tier is no switch"
        );
        assert_eq!(reseated(&begun, Some(seat.clone()), "small tier", 9), None);
        let moved = reseated(&begun, Some(seat), "large", 10_000).expect("it moved");
        assert_eq!(moved.switched_s_ago(12_000, 60), Some(2));
        assert_eq!(moved.switched_s_ago(70_000, 60), None);
        assert_eq!(moved.switched_s_ago(9, 60), None, "the clock began anew");
        let text = moved.to_string();
        let read = |request: &Request| Seat::read(request, |_| Some(text.clone()));
        assert_eq!(read(&begun), Some(moved.clone()));
        assert_eq!(read(&turns(&[(Role::User, "Another")])), None);
        // Who begins with the same words has no past.
        let first = turns(&[FIRST]);
        let again = reseated(&first, Some(moved), "small", 20_000).expect("a new one");
        assert_eq!(again.switched_ms, None);
    }
}
